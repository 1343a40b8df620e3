"""Decodes image files to uint8 arrays, one or many at a time."""

import hashlib
import math
import os
import stat
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from os import PathLike
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowcost.data.cache import Allocate
from lowcost.extras import needs_extra
from lowcost.terminal import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

S = TypeVar("S")
T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MASK_FORMATS = ("PNG", "BMP", "TIFF")  # JPEG and WebP change numbers, and writers of GIF renumber a palette
MAX_PIXELS = 50_000_000
"""The default limit of an image, which takes 0.2 to 0.8 GB of memory while it is decoded."""
TASK_IMAGES = 32
"""Images per task: few enough for a smooth progress bar, enough to hide the overhead of a task."""
MAX_THREADS = 8
"""More threads decode tiny images more slowly, since they compete for the interpreter lock."""
GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow's name of grey levels of 2 or 4 bits → the factor by which it increases them."""
KEPT_SIDE = 128
"""The longest side of images that keep their size by default."""


def read_image(
    path: str | PathLike[str], grid: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns one image as RGB: rotated upright (EXIF), transparency over white, 16-bit grey reduced to 8 bits.

    Args:
        path: a regular file: PNG, JPEG, WebP, BMP, GIF (first frame) or TIFF (first page), recognised by content.
        grid: (H, W) to resize to, after a cut to the largest centred part with these proportions. None keeps the size.
        max_pixels: largest width x height that is decoded; each pixel takes 4 to 16 bytes of memory. A JPEG is decoded
            at 1/2, 1/4 or 1/8 of its size where that suffices for the grid. Pillow's own limit of 178,956,970 pixels
            remains.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: the file cannot be read, is not a regular file, or has too many pixels.
        ImportError: pillow is missing.
    """
    with _opened(path) as image:
        from PIL import Image, ImageOps

        if grid is not None:
            enough = 2 * max(grid)
            image.draft("RGB", (enough, enough))  # decode large JPEGs at no more than the resize needs
        if math.prod(image.size) > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels, more than max_pixels {max_pixels:,}")
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # a damaged EXIF block costs at most the rotation
            if isinstance(error, MemoryError):
                raise
        rgb = _rgb(image)
        if grid is not None and rgb.size != grid[::-1]:
            # Lanczos shrinks without aliasing, and enlarges smoothly where a box filter would repeat pixels.
            rgb = ImageOps.fit(rgb, grid[::-1], Image.Resampling.LANCZOS)
        return np.asarray(rgb)


def read_images(
    paths: Sequence[str], image_size: int | None = None, allocate: Allocate = np.empty, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns many images as RGB of one size, each as `read_image` returns it.

    Args:
        paths: the files, at least one.
        image_size: side of the square images. With None, images that share one size keep it if both sides are at most
            128 and divisible by 8. Otherwise the side is 32 if the median shorter side is below 64, else 64.
        allocate: returns the array to fill; may be called twice.
        max_pixels: limit for each image, as in `read_image`.

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        ValueError: a file cannot be read; the error names the first one.
    """
    if image_size is None:
        # Assume that all have the size of the first: reading every header costs as much as decoding small images, and
        # differing sizes show after few images.
        width, height = _size(paths[0])
        if max(height, width) <= KEPT_SIDE and height % 8 == width % 8 == 0:
            images = allocate((len(paths), *read_image(paths[0], None, max_pixels).shape), np.uint8)
            if _fill(images, paths, None, max_pixels):
                return images
        with closing(_in_parallel(_size, paths, "Measuring images")) as sizes:
            image_size = 32 if statistics.median(map(min, sizes)) < 64 else 64
    grid = (image_size, image_size)
    images = allocate((len(paths), *grid, 3), np.uint8)
    _fill(images, paths, grid, max_pixels)
    return images


def read_mask(
    path: str | PathLike[str], size: tuple[int, int], grid: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns the integers of a mask, cut and resized as `read_image` does with an image, without interpolation.

    Args:
        path: a PNG, BMP or TIFF file, recognised by content, with one grey level or palette index of at most 8 bits per
            pixel, or larger integers up to 255.
        size: (H, W) that it must have.
        grid: (H, W) to resize to.
        max_pixels: as in `read_image`.

    Returns:
        uint8 [*grid].

    Raises:
        ValueError: the file cannot be read, has another format, holds colours or other numbers, or is of another size.
    """
    with _opened(path, MASK_FORMATS) as image:
        from PIL import Image, ImageOps

        if math.prod(image.size) > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels, more than max_pixels {max_pixels:,}")
        coding = str(image.tile)  # before the file is decoded, which empties the list
        step = next((step for raw, step in GREY_STEPS.items() if raw in coding), 1)
        mode, numbers = image.mode, np.asarray(image)
    if numbers.ndim != 2 or numbers.dtype.kind not in "biu" or numbers.min() < 0 or numbers.max() > 255:
        expected = f"{printable(path)} must be a mask of one grey level or palette index from 0 to 255 per pixel"
        raise ValueError(f"{expected}, got mode {mode}; convert it to mode L or P")
    if numbers.shape != size:
        expected, got = (" x ".join(map(str, shape[::-1])) for shape in (size, numbers.shape))
        expected = f"{printable(path)} must be a mask of {expected} pixels, got {got}"
        raise ValueError(f"{expected}; resize it to its image's size")
    mask = Image.fromarray((numbers // step).astype(np.uint8))
    return np.asarray(ImageOps.fit(mask, grid[::-1], Image.Resampling.NEAREST) if size != grid else mask)


def read_masks(
    paths: Sequence[str], images: Sequence[str], grid: tuple[int, int], allocate: Allocate, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns the masks of these images, uint8 [N, *grid], see `read_mask`."""
    masks = allocate((len(paths), *grid), np.uint8)

    def place(i: int) -> None:
        height, width, _ = read_image(images[i], None, max_pixels).shape  # upright, which not every header states
        masks[i] = read_mask(paths[i], (height, width), grid, max_pixels)

    with closing(_in_parallel(place, range(len(paths)), "Decoding masks")) as placed:
        for _ in placed:
            pass
    return masks


def file_digests(paths: Sequence[str]) -> list[bytes]:
    """Returns the sha256 of each file.

    Raises:
        ValueError: a file cannot be read or is not a regular file; the error names the first one.
    """
    with closing(_in_parallel(_digest, paths, "Reading images")) as digests:
        return list(digests)


def _digest(path: str) -> bytes:
    with _readable(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _fill(images: NDArray[np.uint8], paths: Sequence[str], grid: tuple[int, int] | None, max_pixels: int) -> bool:
    """Sets images[i] to the image paths[i] for all i; returns False as soon as one has another shape."""

    def place(i: int) -> bool:
        image = read_image(paths[i], grid, max_pixels)
        if fits := image.shape == images.shape[1:]:
            images[i] = image  # on the thread that decodes, so that no image waits in memory
        return fits

    with closing(_in_parallel(place, range(len(paths)), "Decoding images")) as placed:
        return all(placed)


def _in_parallel(function: Callable[[S], T], items: Sequence[S], what: str) -> Generator[T, None, None]:
    """Yields function(item) for each item, in order, with a progress bar; closing it drops the remaining work.

    It uses threads, since decoding releases the interpreter lock. Processes would have to be spawned, since a process
    that runs JAX must not be forked, and each would import the caller's main module again.
    """
    from rich.console import Console
    from rich.progress import track

    def run(chunk: Sequence[S]) -> list[T]:
        return [function(item) for item in chunk]

    chunks = [items[i : i + TASK_IMAGES] for i in range(0, len(items), TASK_IMAGES)]
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        done = pool.map(run, chunks)
        quiet = not console.is_terminal
        for results in track(done, what, len(chunks), console=console, transient=True, disable=quiet):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _size(path: str) -> tuple[int, int]:
    with _opened(path) as image:
        return image.size


def _rgb(image: "Image") -> "Image":
    from PIL import Image
    from PIL.ExifTags import Base

    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips at 255
        tags = getattr(image, "tag_v2", {})  # a TIFF may have 12 bits, or zero for white
        form = image.mode[:4], tags.get(Base.BitsPerSample, (16,)), tags.get(Base.PhotometricInterpretation, 1)
        if form != ("I;16", (16,), 1):
            raise ValueError("grey levels must have 8 or 16 bits, with zero for black; save it with 8 bits")
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        page = Image.new("RGB", image.size, "white")
        layer = image if image.mode == "RGBA" else image.convert("RGBA")  # avoids a copy
        page.paste(layer, mask=layer)
        image = page
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _opened(path: str | PathLike[str], formats: tuple[str, ...] = FORMATS) -> Iterator["ImageFile"]:
    with needs_extra("data"):
        from PIL import Image

    with _readable(path, formats), Image.open(path, formats=formats) as image:
        yield image


@contextmanager
def _readable(path: str | PathLike[str], formats: tuple[str, ...] = FORMATS) -> Iterator[None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            raise ValueError("not a regular file")
        yield
    except Exception as error:  # a damaged file raises errors of many types
        expected = f"{printable(path)} must be a readable image ({', '.join(formats)})"
        raise ValueError(f"{expected}, got {error!r}; remove or replace it") from error
