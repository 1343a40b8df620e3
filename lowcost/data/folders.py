"""A folder of pictures as a data set, decoded once and memory-mapped from then on."""

import hashlib
import os
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.cache import Allocate, cached
from lowcost.data.dataset import Dataset, Split
from lowcost.data.pictures import read_pictures

Files = list[os.DirEntry[str]]

LAYOUT = "expected train/<class>/ and test/<class>/ with .png, .jpg or .jpeg files in data_dir"
SUFFIXES = (".png", ".jpg", ".jpeg")
CACHE_FORMAT = 1  # to be raised when the same files come to give other pixels


def folder(
    data_dir: str | PathLike[str],
    *,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> Dataset:
    """The pictures data_dir/{train,test}/<class>/*.{png,jpg,jpeg}, as RGB of one size.

    Classes are the sub-folders of train, sorted by name; a class may lack test images. Hidden and other files are
    passed over. A picture of another size or shape is cut to the largest centred square and resized.

    Args:
        data_dir: the folder that holds train and test.
        image_size: side of the square images in pixels, ≥ 1. With None, pictures that share one size keep it, if both
            sides are at most 128 and divisible by 8; otherwise 32 if the median shorter side is below 64, and 64 if
            not.
        cache_dir: where the decoded images are kept, made if missing; the next start with the same files (names,
            sizes, times of change) maps them without decoding. None keeps them in memory alone. Any file in it may be
            deleted.

    Returns:
        The data set, with the images of a class side by side and flip True.

    Raises:
        ValueError: image_size is below 1, a class has no images or is only in test, or an image cannot be read.
        FileNotFoundError: data_dir, train or test is missing, or an image is a link that leads nowhere.
        NotADirectoryError: data_dir, train or test is a file.
        OSError: cache_dir cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size: expected at least 1 pixel or None, got {image_size}")
    root = Path(data_dir)
    train, test = _scan(root, root / "train"), _scan(root, root / "test")
    classes = tuple(train)
    if unknown := [name for name in test if name not in train]:
        raise ValueError(f"{root / 'test' / unknown[0]}: no such class in train; add it there or remove it here")

    files = [file for split in (train, test) for members in split.values() for file in members]

    def read(allocate: Allocate) -> NDArray[np.uint8]:
        return read_pictures([file.path for file in files], image_size, allocate)

    if cache_dir is None:
        images, origin = read(np.empty), str(root)
    else:
        path = Path(cache_dir) / f"folder-{_fingerprint(root, files, image_size)}.npy"
        images, origin = cached(path, read, dtype=np.uint8, length=len(files)), str(path)

    def labels(split: dict[str, Files]) -> NDArray[np.int32]:
        counts = [len(split.get(name, ())) for name in classes]
        return np.repeat(np.arange(len(classes), dtype=np.int32), counts)

    boundary = sum(map(len, train.values()))
    return Dataset(
        name="folder",
        train=Split(images[:boundary], labels(train)),
        test=Split(images[boundary:], labels(test)),
        classes=classes,
        flip=True,
        origin=origin,
    )


def _scan(root: Path, split: Path) -> dict[str, Files]:
    """Class name → its image files, both sorted by name."""
    for path in (root, split):
        if not path.is_dir():
            kind, what = (NotADirectoryError, "not a") if path.exists() else (FileNotFoundError, "no such")
            raise kind(f"{path}: {what} folder; {LAYOUT}")
    classes = {
        entry.name: [file for file in _visible(entry.path) if file.name.lower().endswith(SUFFIXES)]
        for entry in _visible(split)
        if entry.is_dir()
    }
    if not classes:
        raise ValueError(f"{split}: no class folders; {LAYOUT}")
    for name, files in classes.items():
        if not files:
            raise ValueError(f"{split / name}: no images in this class; add .png, .jpg or .jpeg files or remove it")
    return classes


def _visible(path: str | Path) -> Files:
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _fingerprint(root: Path, files: Files, image_size: int | None) -> str:
    """Changes with whatever changes the decoded images: names, sizes and times of the files, image_size, the code."""
    digest = hashlib.sha256(f"{CACHE_FORMAT} {image_size}".encode())
    for file in files:
        name, stat = os.fsencode(file.path.removeprefix(str(root))), file.stat()
        digest.update(b"\0%b\0%d %d" % (name, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:32]
