"""Reads what `predict` classifies: image files, and .npy and .npz files with images, signals or volumes; in NumPy."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowcost import terminal
from lowcost.data import decoding, listing
from lowcost.data.arrays import ROLES
from lowcost.data.dataset import PARTS
from lowcost.data.signals import resample, with_mask
from lowcost.scaling import to_unit_range

ARRAYS = (".npy", ".npz")
"""Suffixes of files with arrays."""
PREFERRED = ("test", "val", "train")
"""Parts of an .npz file, of which the first with images is classified."""
NOT_IMAGES = {form.format(part) for part in PARTS for role in ("labels", "lengths") for form in ROLES[role]}
NOT_IMAGES |= {"classes", "keeps"}
"""Names of the arrays that training reads beside images."""


class Inputs(NamedTuple):
    """What a network takes.

    Attributes:
        image_shape: [*grid, C].
        dtype: of the numbers before they are scaled.
        masked: whether the last channel is a mask, which files do not hold.
        length: number of points to which signals are resampled, or None.
    """

    image_shape: tuple[int, ...]
    dtype: str = "uint8"
    masked: bool = False
    length: int | None = None

    @property
    def files(self) -> bool:
        """Whether it takes image files."""
        return self.dtype == "uint8" and len(self.image_shape) == 3 and self.image_shape[-1] in (1, 3)

    @property
    def varies(self) -> bool:
        """Whether it takes signals of several lengths."""
        return self.masked or self.length is not None

    def fits(self, shape: Sequence[int]) -> bool:
        """Returns whether an array of this shape holds at least one example, as [N, *grid, channels]."""
        count, *own = shape or (0,)
        *grid, channels = self.image_shape
        if not count or len(own) != len(self.image_shape) or own[-1] != channels - self.masked:
            return False
        points = own[0] if self.varies else 0
        longest = points if self.length is not None else grid[0]
        return own[:-1] == grid or 0 < points <= longest

    def __str__(self) -> str:
        """The dtype and the shape of an example in a file."""
        *grid, channels = self.image_shape
        points = ["any" if self.length is not None else f"up to {grid[0]}"] if self.varies else grid
        return f"{self.dtype} [{', '.join(map(str, [*points, channels - self.masked]))}]"


def find(paths: Sequence[Path], takes: Inputs) -> Iterator[Path]:
    """Yields each file, and of each folder what the network takes in it and in all folders below, each folder once.

    That is images if it takes image files, else arrays.

    Raises:
        ValueError, OSError: a path does not exist, or a folder holds none of these.
    """
    if not paths:
        raise ValueError("files must be images, arrays, or folders of them, got none; name at least one")
    for path in paths:
        if path.is_dir():
            yield from sorted(_below(path, listing.SUFFIXES if takes.files else ARRAYS))
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")


def _below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    left_out, found, waiting, seen = Counter[str](), [], [str(folder)], set()
    while waiting:
        path = waiting.pop()
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            files, below = listing.list_images(path, left_out, suffixes)
            arrays = [Path(file.path) for file in files]
            images = [file for file in arrays if file.suffix.lower() != ".npy" or file.stem not in NOT_IMAGES]
            left_out["labels or lengths"] += len(arrays) - len(images)
            found += images
            waiting += [inner.path for inner in below]
    listing.report_left_out(folder, left_out)
    if not found:
        raise ValueError(f"{folder}: no {', '.join(suffixes)} in this folder or below")
    return found


def examples(path: Path, takes: Inputs, max_pixels: int = decoding.MAX_PIXELS) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, float32 [*grid, C]) for each example in a file, scaled as in training.

    The name is that of the file, with the row if the file holds [N, *grid, C]: FILE[3].

    Raises:
        ValueError: the file cannot be read, or holds what the network does not take.
    """
    if path.suffix.lower() in ARRAYS:
        yield from _arrays(path, takes)
    else:
        yield str(path), read(path, takes, max_pixels)


def read(path: Path, takes: Inputs, max_pixels: int = decoding.MAX_PIXELS) -> np.ndarray:
    """Returns an image file as training reads it: float32 [H, W, C] in [0, 1]."""
    if not takes.files:
        raise ValueError(f"{path} must be a .npy or .npz file of {takes}, got another file; save it with NumPy")
    height, width, channels = takes.image_shape
    pixels = decoding.read_image(path, (height, width), max_pixels)
    if channels == 1:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return (pixels / np.float32(255)).reshape(height, width, channels)


def _arrays(path: Path, takes: Inputs) -> Iterator[tuple[str, np.ndarray]]:
    array, lengths = _opened(path)
    several, rows = _rows(path, array, takes)
    if lengths is None:
        lengths = np.full(len(rows), rows.shape[1])
    elif (
        lengths.dtype.kind not in "iu"
        or lengths.shape != rows.shape[:1]
        or not np.isin(lengths, range(1, rows.shape[1] + 1)).all()
    ):
        expected = f"integers from 1 to {rows.shape[1]}, one for each of {len(rows)} signals"
        got = f"{lengths.dtype} {list(lengths.shape)}"
        raise ValueError(f"the lengths of {path} must be {expected}, got {got}; correct them")
    if not takes.varies and (lengths < rows.shape[1]).any():
        got = f"lengths from {lengths.min()}"
        raise ValueError(f"{path} must hold {takes} without padding, got {got}; cut the signals to one length")
    with np.errstate(over="ignore"):  # the result is checked
        finite = all(np.isfinite(row[:n].astype(np.float32)).all() for row, n in zip(rows, lengths, strict=True))
    if not finite:
        raise ValueError(f"{path} must be finite in float32, got NaN, an infinity or a larger number; replace it")
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        yield f"{path}[{i}]" if several else str(path), _fitted(row[:n], takes)


def _opened(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the array of a file, and the numbers of points of its signals or None; unpickles nothing."""
    if path.suffix.lower() == ".npz":
        return _members(path)
    array = _array(path)
    stems = ["lengths", *(form.format(name) for name in (*PARTS, path.stem) for form in ROLES["lengths"])]
    files = (path.with_name(stem + suffix) for stem in stems for suffix in (".npy", ".NPY"))
    beside = {file.stem: file for file in files if file.exists()}
    with _readable(path):
        lengths = _lengths(path.stem, [path.stem, *beside])
    return array, None if lengths is None else _array(beside[lengths])


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        if not path.is_file():  # opening a pipe would block
            raise ValueError("not a regular file")
        yield
    except Exception as error:  # a damaged file raises errors of many types
        reason = terminal.first_line(error).split(". ")[0]  # then NumPy advises to unpickle
        got = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{path} must be a readable file of numbers, got {got}; save it with NumPy again") from error


def _array(path: Path) -> np.ndarray:
    with _readable(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays, which need the suffix .npz")
    return array


def _members(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what `_opened` does, of the first part with images in an .npz file.

    Without images of any part this is the first array that is neither labels nor `classes` nor `keeps`.
    """
    with _readable(path), path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("one array, which needs the suffix .npy")
        members = zip(file.files, file.zip.namelist(), strict=True)
        arrays = [name for name, member in members if file.zip.open(member).read(6) == np.lib.format.MAGIC_PREFIX]
        known = [form.format(part) for part in PREFERRED for form in ROLES["images"]]
        candidates = [name for name in (*known, *arrays) if name in arrays and name not in NOT_IMAGES]
        if not candidates:
            raise ValueError("no images")
        lengths = _lengths(candidates[0], arrays)
        return file[candidates[0]], None if lengths is None else file[lengths]


def _lengths(images: str, names: Sequence[str]) -> str | None:
    """Returns which of the names is that of the numbers of points of these images, or None if all have one length."""
    parts = [part for part in PARTS if images in {form.format(part) for form in ROLES["images"]}]
    own = [name for part in parts for form in ROLES["lengths"] if (name := form.format(part)) in names]
    if len(own) > 1:
        raise ValueError(f"both {own[0]} and {own[1]}, of which one must go")
    if not own and (others := [name for name in names if "lengths" in name.split("_")]):
        raise ValueError(f"{others[0]}, which are lengths of no images; name them test_images and test_lengths")
    return own[0] if own else None


def _rows(path: Path, array: np.ndarray, takes: Inputs) -> tuple[bool, np.ndarray]:
    """Returns whether the array has several examples, and all of them as [N, *grid, channels]."""
    small = array.dtype.kind in "iu" and array.dtype.itemsize <= 2 and not takes.varies
    dtype = "float32" if array.dtype.kind in "fiub" and not small else array.dtype.name  # as in lowcost.data.arrays
    forms = [array, array[None]]
    if not (takes.varies and array.ndim > 1 and array.shape[-1] == 1):  # else these are channels, and not single points
        forms += [array[..., None], array[None, ..., None]]
    fitting = [i for i, form in enumerate(forms) if takes.fits(form.shape)]
    if dtype != takes.dtype or not fitting:
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{path} must hold {takes} or several of these, got {got}; convert it as for training")
    return fitting[0] % 2 == 0, forms[fitting[0]]


def _fitted(example: np.ndarray, takes: Inputs) -> np.ndarray:
    """Returns [*grid, channels] as float32 of the shape and range that the network takes."""
    numbers: np.ndarray = example.astype(np.float32) if takes.dtype == "float32" else to_unit_range(example)
    if takes.length is not None:
        return resample(numbers[None], takes.length)[0]
    if takes.masked:
        padded = np.pad(numbers, [(0, takes.image_shape[0] - len(numbers)), (0, 0)])
        return with_mask(padded[None], np.array([len(numbers)]))[0]
    return numbers
