"""Reads a folder of images as a data set; with a cache, decodes it once."""

import hashlib
import os
from collections import Counter
from itertools import compress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowcost.data.array_labels import point_labels
from lowcost.data.cache import Allocate, cached
from lowcost.data.dataset import PARTS, PHOTOGRAPHS, Dataset, Split
from lowcost.data.decoding import MAX_PIXELS, file_digests, read_images, read_masks
from lowcost.data.labels import LABELS, Labelled, read_tables, standardise
from lowcost.data.listing import SUFFIXES, Entries, list_images, report_left_out
from lowcost.data.mask_files import NAMES, class_names, has_masks, pair
from lowcost.data.splitting import check_kept, check_share, fractions, warn_absent, warn_copies
from lowcost.data.tasks import Task, check_task
from lowcost.terminal import printable

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
    task: Task = "classes",
) -> Dataset:
    """Returns the images data_dir/{train,test,val}/<class>/*, or data_dir/<class>/*, as RGB of one size.

    Classes are the folders in train, or links to folders, sorted by name. One line on stderr names those without test
    or validation images. Without the folder test, the images of train are split; without train, test and val, those of
    data_dir/<class>/*. An image is a test image if the first 8 bytes of the sha256 of its file, as a fraction of 2⁶⁴,
    are below test_share. So about this share of each class is tested, copies of a file stay together, and added images
    move none from test to train. Images are PNG, JPEG, WebP, BMP, GIF (first frame) and TIFF (first page) files,
    recognised by suffix. One line on stderr counts all other entries, such as hidden files and folders inside a class.
    An image of another size or shape is cut to the largest centred square and resized.

    For other tasks, each folder above <class> holds labels.csv, see `lowcost.data.labels.read_labels`. Its images may
    be in any folder below. Values are standardised: (value − mean) / standard deviation, both of the training images.

    For the task "pixels", train, test and val, or data_dir itself, hold images/* and masks/* with equal stems. A mask
    is a PNG, BMP or TIFF file of the image's size, whose grey levels or palette indices are the classes, from 0 to
    at most 254, or 255 at pixels without a label. It is cut and resized as its image, without interpolation. If these
    are the only folders in train, the task "classes" becomes "pixels". The file classes.txt in train, or beside images
    and masks, may hold the names of the classes, one per line. Without it, they are 0, 1, … up to the largest one.

    Args:
        data_dir: the folder.
        image_size: side of the square images in pixels, ≥ 1. With None, images that share one size keep it if both
            sides are at most 128 and divisible by 8; otherwise 32 if the median shorter side is below 64, else 64.
        cache_dir: folder for the decoded images, made if missing; None keeps them in memory. Later calls with the same
            files (names, sizes, times of modification and of status change) memory-map the images without decoding.
            Any file in it may be deleted. Delete the cache after an exchange of two files of equal size and
            modification time on a file system without times of status change.
        max_pixels: limit for each image, as in `lowcost.data.decoding.read_image`; at most 8 are decoded at a time.
        test_share: above 0 and below 1; has no effect if there is a folder test.
        task: "classes", "tags", "values" or "pixels".

    Returns:
        The data set, ordered by class and path; flips, shifts and hidden parts keep the labels.

    Raises:
        ValueError: an argument is out of its range, there are fewer than two classes, a class has no images or none in
            train, the split leaves no test images, labels.csv has errors, or an image or a mask cannot be read or does
            not fit the other.
        FileNotFoundError: data_dir, train, labels.csv or a mask is missing, or an image is a broken link.
        NotADirectoryError: data_dir, train, test or val is a file.
        OSError: cache_dir cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 or None, got {image_size}")
    check_share("test_share", test_share)
    check_task(task)
    cache = None if cache_dir is None else Path(cache_dir)
    return _load(Path(data_dir), image_size, cache, max_pixels, test_share, task)


def _load(
    root: Path, image_size: int | None, cache: Path | None, max_pixels: int, test_share: float, task: Task
) -> Dataset:
    folders = _parts(root)
    task = "pixels" if task == "classes" and has_masks(folders["train"]) else task
    classes, parts = _labelled(folders, task)
    if "test" not in parts:
        parts |= _split(root, parts["train"], test_share, classes, task, cache)
    labels_of = {part: labels for part, (_, labels) in parts.items()}
    scale = standardise(labels_of, classes) if task == "values" else None
    files = [file for members, _ in parts.values() for file in members]

    def read(allocate: Allocate) -> NDArray[np.uint8]:
        images = read_images(files, image_size, allocate, max_pixels)
        warn_copies(root, {PARTS[part]: x for part, x in _by_part(images, parts).items()})
        return images

    path = _cache_file(cache, "folder", root, files, image_size)
    images, splits = cached(path, read, dtype=np.uint8, length=len(files)), dict[str, Any]()
    if task == "pixels":
        classes, parts = _with_masks(root, parts, classes, images.shape[:-1], (cache, image_size, max_pixels))
    images_of = _by_part(images, parts)
    for part, (members, labels) in parts.items():
        labels = labels.astype(np.float32) if labels.dtype.kind == "f" else labels
        names = tuple(os.path.relpath(file, root) for file in members)
        splits[PARTS[part]] = Split(images_of[part], labels, names)
        warn_absent(str(root), PARTS[part], labels, classes, task)
    origin = str(path or root)
    return Dataset("folder", classes=classes, keeps=PHOTOGRAPHS, origin=origin, task=task, scale=scale, **splits)


def _labelled(folders: dict[str, Path], task: Task) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Returns the classes, and part → its images with their labels, which are paths of masks for the task pixels."""
    if task == "classes":
        return _class_folders(folders)
    if task == "pixels":
        return class_names(folders["train"]), pair(folders)
    return read_tables(folders, task)


def _with_masks(
    root: Path,
    parts: dict[str, Labelled],
    names: tuple[str, ...],
    shape: tuple[int, ...],
    options: tuple[Path | None, int | None, int],
) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Returns the classes, and part → its images with the class of each pixel, uint8 [N, H, W]."""
    cache, image_size, max_pixels = options
    images, masks = ([str(x) for part in parts.values() for x in part[i]] for i in (0, 1))

    def read(allocate: Allocate) -> NDArray[np.uint8]:
        return read_masks(masks, images, (shape[1], shape[2]), allocate, max_pixels)

    path = _cache_file(cache, "masks", root, [*images, *masks], image_size)
    pixels = cached(path, read, dtype=np.uint8, length=shape[0])
    labelled = {part: (f"{printable(root)}: {part} masks", x) for part, x in _by_part(pixels, parts).items()}
    classes, labels = point_labels(labelled, {part: x.shape for part, (_, x) in labelled.items()}, names, NAMES)
    return classes, {part: (parts[part][0], labels[part]) for part in parts}


def _by_part(array: NDArray, parts: dict[str, Labelled]) -> dict[str, NDArray]:
    """Returns part → its rows of an array over the files of all parts, in the order of the parts."""
    ends = np.cumsum([len(files) for files, _ in parts.values()])[:-1]
    return dict(zip(parts, np.split(array, ends), strict=True))


def _parts(root: Path) -> dict[str, Path]:
    """Returns part → its folder; root itself is train if it holds no train, test or val."""
    if not (present := [part for part in PARTS if (root / part).exists()]):
        return {"train": _checked(root)}
    folders = {part: _checked(root / part) for part in PARTS if part == "train" or part in present}
    left_out = Counter[str]()
    images, others = list_images(root, left_out)
    left_out["folders beside train"] += len(others) - len(present)
    left_out["images beside train"] += len(images)
    report_left_out(root, left_out)
    return folders


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        kind, got = (NotADirectoryError, "another file") if folder.exists() else (FileNotFoundError, "none")
        raise kind(f"{printable(folder)} must be a folder, got {got}; {LAYOUT}")
    return folder


def _class_folders(folders: dict[str, Path]) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Returns the classes, and part → its images, ordered by class and name."""
    for table in (folder / LABELS for folder in folders.values()):
        if table.exists():
            remedy = "choose one, or remove the file"
            raise ValueError(f"task must be tags or values for the labels in {printable(table)}, got classes; {remedy}")
    found = {part: _scan(folder) for part, folder in folders.items()}
    classes, parts = tuple(found["train"]), {}
    for part, images in found.items():
        if unknown := [name for name in images if name not in classes]:
            name = printable(folders[part] / unknown[0])
            remedy = "add it or remove this one"
            raise ValueError(f"{name} must be a class of train too, got no such folder there; {remedy}")
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
    root: Path, images: Labelled, share: float, classes: tuple[str, ...], task: Task, cache: Path | None
) -> dict[str, Labelled]:
    """Returns train and test, where the test images are those whose content falls below the share."""
    files, labels = images

    def read(allocate: Allocate) -> NDArray[np.float64]:
        array = allocate((len(files),), np.float64)
        array[:] = fractions(file_digests(files))
        return array

    path = _cache_file(cache, "split", root, files, None)
    tested = cached(path, read, dtype=np.float64, length=len(files)) < share
    check_kept("test_share", share, tested, labels, classes, task)
    return {part: (list(compress(files, r)), labels[r]) for part, r in (("train", ~tested), ("test", tested))}


def _cache_file(cache: Path | None, kind: str, root: Path, files: list[str], image_size: int | None) -> Path | None:
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
