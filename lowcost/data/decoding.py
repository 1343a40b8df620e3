"""Picture files decoded to uint8 arrays, one or many at a time."""

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

S = TypeVar("S")
T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000  # 0.2 to 0.8 GB of memory while decoding
CHUNK = 32  # pictures a task: few enough for a lively progress bar, enough to hide what a task costs
MAX_THREADS = 8  # beyond, tiny pictures are decoded ever slower: their threads fight for the interpreter lock


def read_picture(
    path: str | PathLike[str], grid: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns one image as RGB: turned upright (EXIF), transparency laid on white, 16-bit grey cut to 8 bits.

    Args:
        path: a regular file; its content tells the format, PNG, JPEG, WebP, BMP, GIF (the first frame is read) or TIFF
            (the first page), not its name.
        grid: (H, W) to resize to: of the image, the largest centred part with these proportions. None keeps it whole.
        max_pixels: width times height that are decoded at most, each of which takes 4 to 16 bytes of memory meanwhile.
            A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough for the grid, and needs 1/64 of the
            memory or so. Pillow's own limit of 178,956,970 for any file stays.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: the file cannot be read, or is no regular file, or has more pixels.
    """
    with _opened(path) as picture:
        from PIL import Image, ImageOps

        if grid is not None:
            enough = 2 * max(grid)
            picture.draft("RGB", (enough, enough))  # large JPEGs: decode no more than the resizing can use
        if math.prod(picture.size) > max_pixels:
            raise ValueError(f"{picture.width} x {picture.height} pixels, more than max_pixels {max_pixels:,}")
        picture.load()
        try:
            ImageOps.exif_transpose(picture, in_place=True)
        except Exception as error:  # a damaged EXIF block, met before the image is turned or afterwards
            if isinstance(error, MemoryError):
                raise
        rgb = _rgb(picture)
        if grid is not None and rgb.size != grid[::-1]:
            # Lanczos: antialiased and sharp when it shrinks, smooth when it enlarges, where a box would repeat pixels.
            rgb = ImageOps.fit(rgb, grid[::-1], Image.Resampling.LANCZOS)
        return np.asarray(rgb)


def read_pictures(
    paths: Sequence[str], image_size: int | None = None, allocate: Allocate = np.empty, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Returns many images as RGB of one size, each as `read_picture` gives it.

    Args:
        paths: the files, at least one.
        image_size: side of the square images. With None, pictures that share one size keep it, if both sides are at
            most 128 and divisible by 8 (so that a network can halve the grid); otherwise the side is 32 if the median
            shorter side is below 64, and 64 if not.
        allocate: gives the array that is filled, and may be called twice.
        max_pixels: of each image, as in `read_picture`.

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        ValueError: a file cannot be read; of several, the first is named.
    """
    if image_size is None:
        # Suppose that all share the size of the first: to read every header beforehand costs as much as decoding small
        # pictures, and where sizes do differ a few pictures tell.
        width, height = _size(paths[0])
        if max(height, width) <= 128 and height % 8 == width % 8 == 0:
            images = allocate((len(paths), *read_picture(paths[0], None, max_pixels).shape), np.uint8)
            if _fill(images, lambda path: read_picture(path, None, max_pixels), paths):
                return images
        with closing(_in_parallel(_size, paths, "Measuring pictures")) as sizes:
            image_size = 32 if statistics.median(map(min, sizes)) < 64 else 64
    grid = (image_size, image_size)
    images = allocate((len(paths), *grid, 3), np.uint8)
    _fill(images, lambda path: read_picture(path, grid, max_pixels), paths)
    return images


def _fill(images: NDArray[np.uint8], read: Callable[[str], NDArray[np.uint8]], paths: Sequence[str]) -> bool:
    """images[i] = read(paths[i]) for all i; False as soon as one of them has another shape."""

    def place(i: int) -> bool:
        image = read(paths[i])
        if fits := image.shape == images.shape[1:]:
            images[i] = image  # on the thread that decodes: no picture waits for its turn in memory
        return fits

    with closing(_in_parallel(place, range(len(paths)), "Decoding pictures")) as placed:
        return all(placed)


def _in_parallel(function: Callable[[S], T], items: Sequence[S], what: str) -> Generator[T, None, None]:
    """function(item) for each item, in order, under a progress bar; closing it drops the work not yet begun.

    Threads, not processes: decoding releases the interpreter lock, which pays for pictures of some size and costs
    little for tiny ones. Processes would have to be spawned, since one that runs JAX must not be forked, and that
    imports the caller's main module again in each.
    """
    from rich.console import Console
    from rich.progress import track

    def run(chunk: Sequence[S]) -> list[T]:
        return [function(item) for item in chunk]

    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
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
    with _opened(path) as picture:
        return picture.size


def _rgb(picture: "Image") -> "Image":
    from PIL import Image
    from PIL.ExifTags import Base

    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        tags = getattr(picture, "tag_v2", {})  # of a TIFF, which may have 12 bits, or zero for white
        form = picture.mode[:4], tags.get(Base.BitsPerSample, (16,)), tags.get(Base.PhotometricInterpretation, 1)
        if form != ("I;16", (16,), 1):
            raise ValueError("grey levels of neither 8 nor 16 bits, or with zero for white; save it with 8 bits")
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        page = Image.new("RGB", picture.size, "white")
        layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")  # which would copy it
        page.paste(layer, mask=layer)
        picture = page
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator["Image"]:
    with needs_extra("data"):
        from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its other end
            raise ValueError("no regular file")
        with Image.open(path, formats=FORMATS) as picture:
            yield picture
    except Exception as error:  # a damaged file raises whatever the decoder stumbles over
        raise ValueError(
            f"{printable(path)}: must be a readable image ({', '.join(FORMATS)}), got {error!r}; remove or replace it"
        ) from error
