"""Reads a folder of images as a data set; with a cache, decodes it once."""

import hashlib
import os
from collections import Counter
from itertools import compress
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.cache import Allocate, cached
from lowcost.data.dataset import Dataset, Split, absent, warn_absent
from lowcost.data.decoding import MAX_PIXELS, file_digests, read_images
from lowcost.data.splitting import check_share, fractions
from lowcost.terminal import printable, warn

Entries = list[os.DirEntry[str]]
Labelled = tuple[list[str], NDArray]
"""The paths of N images, and their labels."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARTS = ("train", "test", "val")
LAYOUT = "data_dir must hold train/<class>/ and test/<class>/ with images, or <class>/ alone"
CACHE_FORMAT = 1
"""Must increase when the same files result in other pixels."""


def folder(
    data_dir: str | PathLike[str],
    *,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    test_share: float = 0.2,
) -> Dataset:
    """Returns the images data_dir/{train,test,val}/<class>/*, or data_dir/<class>/*, as RGB of one size.

    Classes are the folders in train, or links to folders, sorted by name. A class may lack test and validation images;
    one line on stderr names it. The folder val is optional. Without the folder test, the images of train are split;
    without all three, those of data_dir/<class>/*. An image is a test image if the first 8 bytes of the sha256 of its
    file, as a fraction of 2⁶⁴, are below test_share. So about this share of each class is tested, copies of a file stay
    together, and added images move no image from test to train.

    Images are PNG, JPEG, WebP, BMP, GIF (first frame) and TIFF (first page) files, recognised by suffix. All other
    entries, such as hidden files and folders inside a class, are ignored; one line on stderr counts them. An image of
    another size or shape is cut to the largest centred square and resized.

    Args:
        data_dir: the folder that holds train, or the folders of the classes.
        image_size: side of the square images in pixels, ≥ 1. With None, images that share one size keep it if both
            sides are at most 128 and divisible by 8; otherwise 32 if the median shorter side is below 64, else 64.
        cache_dir: folder for the decoded images, made if missing; None keeps them in memory. Later calls with the same
            files (names, sizes, times of modification and of status change) memory-map the images without decoding.
            Any file in it may be deleted. Delete the cache after an exchange of two files of equal size and
            modification time on a file system without times of status change.
        max_pixels: limit for each image, as in `lowcost.data.decoding.read_image`; at most 8 are decoded at a time.
        test_share: above 0 and below 1; has no effect if there is a folder test.

    Returns:
        The data set, ordered by class, with flip True.

    Raises:
        ValueError: an argument is out of its range, there are fewer than two classes, a class has no images or none in
            train, the split leaves no test images, or an image cannot be read.
        FileNotFoundError: data_dir is missing, or train although test or val exists; or an image is a broken link.
        NotADirectoryError: data_dir, train, test or val is a file.
        OSError: cache_dir cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 or None, got {image_size}")
    check_share("test_share", test_share)
    root, cache = Path(data_dir), None if cache_dir is None else Path(cache_dir)
    classes, parts = _class_folders(_parts(root))
    if "test" not in parts:
        parts |= _split(root, parts["train"], test_share, classes, cache)
    splits, origin = _decode(root, parts, image_size, cache, max_pixels)
    dataset = Dataset("folder", splits["train"], splits["test"], classes, True, origin, splits.get("val"))
    for part, split in dataset.splits.items():
        warn_absent(str(root), part, split.labels, classes, "classes")
    return dataset


def _parts(root: Path) -> dict[str, Path]:
    """Returns part → its folder; root itself is train if it holds no train, test or val."""
    if not (present := [part for part in PARTS if (root / part).exists()]):
        return {"train": _checked(root)}
    folders = {part: _checked(root / part) for part in PARTS if part == "train" or part in present}
    left_out = Counter[str]()
    images, others = list_images(root, left_out)
    left_out["folders beside train"] += len(others) - len(present)
    left_out["images outside a class"] += len(images)
    report_left_out(root, left_out)
    return folders


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        kind, got = (NotADirectoryError, "another file") if folder.exists() else (FileNotFoundError, "none")
        raise kind(f"{printable(folder)} must be a folder, got {got}; {LAYOUT}")
    return folder


def _class_folders(folders: dict[str, Path]) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Returns the classes, and part → its images, ordered by class and name."""
    found = {part: _scan(folder) for part, folder in folders.items()}
    classes, parts = tuple(found["train"]), {}
    for part, images in found.items():
        if unknown := [name for name in images if name not in classes]:
            name = printable(folders[part] / unknown[0])
            raise ValueError(
                f"{name} must be a class of train too, got no such folder there; add it or remove this one"
            )
        files = [entry.path for name in classes for entry in images.get(name, ())]
        counts = [len(images.get(name, ())) for name in classes]
        parts[part] = files, np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    if len(classes) < 2:
        got = f"got only {printable(classes[0])}; add a folder per class"
        raise ValueError(f"{printable(folders['train'])} must hold at least two classes, {got}")
    return classes, parts


def _scan(split: Path) -> dict[str, Entries]:
    """Returns class name → its image files, both sorted by name."""
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


def _split(
    root: Path, images: Labelled, share: float, classes: tuple[str, ...], cache: Path | None
) -> dict[str, Labelled]:
    """Returns train and test, where the test images are those whose content falls below the share."""
    files, labels = images

    def read(allocate: Allocate) -> NDArray[np.float64]:
        array = allocate((len(files),), np.float64)
        array[:] = fractions(file_digests(files))
        return array

    path = _file(cache, "split", root, files, None)
    tested = cached(path, read, dtype=np.float64, length=len(files)) < share
    parts = {part: (list(compress(files, r)), labels[r]) for part, r in (("train", ~tested), ("test", tested))}
    if not tested.any():
        raise ValueError(f"test_share must leave test images, got {share}, which takes 0 of {len(files)}; increase it")
    if lost := absent(parts["train"][1], classes, "classes"):
        raise ValueError(f"test_share must leave training images of {lost}, got {share}; decrease it or add images")
    return parts


def _decode(
    root: Path, parts: dict[str, Labelled], image_size: int | None, cache: Path | None, max_pixels: int
) -> tuple[dict[str, Split], str]:
    """Returns part → split, and where the images come from."""
    files = [file for members, _ in parts.values() for file in members]

    def read(allocate: Allocate) -> NDArray[np.uint8]:
        return read_images(files, image_size, allocate, max_pixels)

    path = _file(cache, "folder", root, files, image_size)
    images, splits = cached(path, read, dtype=np.uint8, length=len(files)), {}
    for part, (_, labels) in parts.items():
        splits[part], images = Split(images[: len(labels)], labels), images[len(labels) :]
    return splits, str(path or root)


def _file(cache: Path | None, kind: str, root: Path, files: list[str], image_size: int | None) -> Path | None:
    """Returns a path that changes with names, sizes and times of the files, image_size and the cache format.

    The time of status change reveals an exchange of files of equal size and modification time. The inode is left out,
    since some network file systems change inodes at each mount.
    """
    if cache is None:
        return None
    digest = hashlib.sha256(f"{CACHE_FORMAT} {image_size}".encode())
    for file in files:
        name, stat = os.fsencode(file.removeprefix(str(root))), os.stat(file)
        digest.update(b"\0%b\0%d %d %d" % (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return cache / f"{kind}-{digest.hexdigest()[:32]}.npy"


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
            if entry.name.startswith((".", "__MACOSX")):  # macOS adds such folders to its archives
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
