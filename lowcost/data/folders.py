"""Reads a folder of images as a data set; with a cache, decodes it once."""

import hashlib
import os
from collections import Counter
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.cache import Allocate, cached
from lowcost.data.dataset import Dataset, Split
from lowcost.data.decoding import MAX_PIXELS, read_images
from lowcost.terminal import printable, warn

Entries = list[os.DirEntry[str]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LAYOUT = "data_dir must hold train/<class>/ and test/<class>/ with images"
CACHE_FORMAT = 1
"""Must increase when the same files result in other pixels."""


def folder(
    data_dir: str | PathLike[str],
    *,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Returns the images data_dir/{train,test}/<class>/* as RGB of one size.

    Classes are the folders in train, or links to folders, sorted by name; a class may lack test images. Images are PNG,
    JPEG, WebP, BMP, GIF (first frame) and TIFF (first page) files, recognised by suffix. All other entries, such as
    hidden files and folders inside a class, are ignored; one line on stderr counts them. An image of another size or
    shape is cut to the largest centred square and resized.

    Args:
        data_dir: the folder that holds train and test.
        image_size: side of the square images in pixels, ≥ 1. With None, images that share one size keep it if both
            sides are at most 128 and divisible by 8; otherwise 32 if the median shorter side is below 64, else 64.
        cache_dir: folder for the decoded images, made if missing; None keeps them in memory. Later calls with the same
            files (names, sizes, times of modification and of status change) memory-map the images without decoding.
            Any file in it may be deleted. Delete the cache after an exchange of two files of equal size and
            modification time on a file system without times of status change.
        max_pixels: limit for each image, as in `lowcost.data.decoding.read_image`; at most 8 are decoded at a time.

    Returns:
        The data set, ordered by class, with flip True.

    Raises:
        ValueError: image_size is below 1, a class has no images or is only in test, or an image cannot be read.
        FileNotFoundError: data_dir, train or test is missing, or an image is a broken link.
        NotADirectoryError: data_dir, train or test is a file.
        OSError: cache_dir cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 or None, got {image_size}")
    root = Path(data_dir)
    train, test = _scan(root, root / "train"), _scan(root, root / "test")
    classes = tuple(train)
    if unknown := [name for name in test if name not in train]:
        name = printable(root / "test" / unknown[0])
        raise ValueError(f"{name} must be a class of train too, got no such folder there; add it or remove this one")

    files = [file for split in (train, test) for members in split.values() for file in members]

    def read(allocate: Allocate) -> NDArray[np.uint8]:
        return read_images([file.path for file in files], image_size, allocate, max_pixels)

    path = None if cache_dir is None else Path(cache_dir) / f"folder-{_fingerprint(root, files, image_size)}.npy"
    images = cached(path, read, dtype=np.uint8, length=len(files))

    def labels(split: dict[str, Entries]) -> NDArray[np.int32]:
        counts = [len(split.get(name, ())) for name in classes]
        return np.repeat(np.arange(len(classes), dtype=np.int32), counts)

    first_test = sum(map(len, train.values()))
    splits = Split(images[:first_test], labels(train)), Split(images[first_test:], labels(test))
    return Dataset("folder", *splits, classes, flip=True, origin=str(path or root))


def _scan(root: Path, split: Path) -> dict[str, Entries]:
    """Returns class name → its image files, both sorted by name."""
    for path in (root, split):
        if not path.is_dir():
            kind, got = (NotADirectoryError, "another file") if path.exists() else (FileNotFoundError, "none")
            raise kind(f"{printable(path)} must be a folder, got {got}; {LAYOUT}")
    left_out, classes = Counter[str](), {}
    images, folders = list_images(split, left_out)
    for entry in folders:
        classes[entry.name], inner = list_images(entry, left_out)
        left_out["folders inside a class"] += len(inner)
    left_out["images outside a class"] += len(images)
    report_left_out(split, left_out)
    if not classes:
        raise ValueError(f"{printable(split)} must hold a folder per class, got none; {LAYOUT}")
    for name, files in classes.items():
        if not files:
            expected = f"{printable(split / name)} must hold images ({', '.join(SUFFIXES)})"
            raise ValueError(f"{expected}, got none; add images or remove the folder")
    return classes


def _fingerprint(root: Path, files: Entries, image_size: int | None) -> str:
    """Returns a name that changes with names, sizes and times of the files, image_size and the cache format.

    The time of status change reveals an exchange of files of equal size and modification time. The inode is left out,
    since some network file systems change inodes at each mount.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT} {image_size}".encode())
    for file in files:
        name, stat = os.fsencode(file.path.removeprefix(str(root))), file.stat()
        digest.update(b"\0%b\0%d %d %d" % (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return digest.hexdigest()[:32]


def list_images(folder: str | PathLike[str], left_out: Counter[str]) -> tuple[Entries, Entries]:
    """Returns the images and the folders in a folder, each sorted by name, and counts all other entries by kind.

    An image is a regular file with one of `SUFFIXES`, in lower or upper case, or a link with such a name. Reading the
    image checks the target of the link, so that a broken link is an error. A link to a folder counts as a folder.
    Hidden entries are left out.

    Args:
        folder: the folder.
        left_out: kind → number of entries left out, to which this folder's are added.

    Returns:
        (images, folders).

    Raises:
        OSError: the folder cannot be read.
    """
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(entry)
            elif suffix not in SUFFIXES:
                left_out[suffix or "without suffix"] += 1
            elif entry.is_symlink() or entry.is_file():
                images.append(entry)
            else:
                left_out["pipes or devices"] += 1
    return images, folders


def report_left_out(folder: str | PathLike[str], left_out: Counter[str]) -> None:
    """Prints one line on stderr with the numbers of entries left out, if any, for at most ten kinds."""
    if left_out.total():
        kinds = [f"{count:,} {kind}" for kind, count in left_out.most_common() if count]
        named = ", ".join(kinds[:10]) + ", ..." * (len(kinds) > 10)
        warn(f"{os.fspath(folder)}: ignored {left_out.total():,} entries: {named}")
