"""Loads data sets by name. A new source is a function that returns a Dataset, a `DatasetName`, and a case in `load`."""

from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lowcost.data.archives import read_archive
from lowcost.data.arrays import read_arrays
from lowcost.data.cache import Allocate, cached
from lowcost.data.catalogue import ENTRIES, find_archive, search
from lowcost.data.dataset import PHOTOGRAPHS, Dataset, Split
from lowcost.data.decoding import MAX_PIXELS
from lowcost.data.download import download as download_archive
from lowcost.data.folders import folder
from lowcost.data.prepared import find_prepared, read_prepared
from lowcost.data.tasks import Task
from lowcost.extras import needs_extra

PublishedName = Literal["cifar10", "cifar100", "stl10"]
DatasetName = Literal["digits", "folder", "arrays", PublishedName]
SOURCES: tuple[DatasetName, ...] = get_args(DatasetName)
CACHE_FORMAT = 1
"""Must increase when the same source results in other arrays."""


def digits() -> Dataset:
    """Returns handwritten digits: 1,437 training and 360 test images, 12 x 12 x 1, in ten classes.

    They are the 8 x 8 scans inside scikit-learn, so that nothing is downloaded. Every fifth image is a test image. Grey
    values are scaled from 0..16 to 0..255. A black frame of two pixels leaves room for crops, and leaves a network that
    halves the grid twice the 3 x 3 points that a 3 x 3 stencil needs. Digits must not be flipped.

    Raises:
        ImportError: scikit-learn is missing.
    """
    with needs_extra("data"):
        from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    grey = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = np.pad(grey, ((0, 0), (2, 2), (2, 2), (0, 0)))
    tested = np.arange(len(labels)) % 5 == 0
    train, test = (Split(images[rows], labels[rows].astype(np.int32)) for rows in (~tested, tested))
    return Dataset("digits", train, test, tuple("0123456789"), ("shift", "hide"), origin="scikit-learn's load_digits")


def published(
    name: PublishedName,
    *,
    data_dir: str | PathLike[str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """Returns CIFAR-10, CIFAR-100 with fine labels, or the labelled images of STL-10, as published by their authors.

    The source is a folder that tensorflow-datasets has prepared as array_record, or else the original binary archive.
    `lowcost.data.prepared.find_prepared` and `lowcost.data.catalogue.search` list the folders that are searched.

    Args:
        name: "cifar10", "cifar100" or "stl10".
        data_dir: the first folder to search.
        cache_dir: folder for the images, which later calls memory-map; None keeps them in memory.
        download: download an archive that is not found.

    Returns:
        The data set, in the order of its files; flips, shifts and hidden parts keep the labels.

    Raises:
        FileNotFoundError: nothing was found; the message explains how to get the archive.
        ValueError: another name, or the files are damaged.
        OSError: the download failed, or cache_dir cannot be written.
    """
    if name not in ENTRIES:
        raise ValueError(f"name must be one of {', '.join(ENTRIES)}, got {name!r}; use `load` for others")
    entry = ENTRIES[name]
    record = np.dtype([("label", np.int32), ("image", np.uint8, entry.image_shape)])
    length = entry.train + entry.test

    def archive() -> Path:
        try:
            return find_archive(entry, data_dir)
        except FileNotFoundError:
            if not download:
                raise
            return download_archive(entry, search(entry, data_dir)[0])

    def read(allocate: Allocate) -> np.ndarray:
        train, test = read_archive(archive(), entry) if prepared is None else read_prepared(prepared, entry)
        records = allocate((length,), record)
        for part, split in ((records[: entry.train], train), (records[entry.train :], test)):
            part["label"], part["image"] = split.labels, split.images
        return records

    # One cache per source, since the order of the images differs.
    prepared = find_prepared(entry, data_dir)
    source = entry.sha256[:16] if prepared is None else f"prepared-{prepared.name}"
    path = None if cache_dir is None else Path(cache_dir) / f"{name}-{source}-{CACHE_FORMAT}.npy"
    records, origin = cached(path, read, dtype=record, length=length), str(path or prepared or entry.filename)
    parts = np.split(records, [entry.train])
    train, test = (Split(part["image"], np.ascontiguousarray(part["label"])) for part in parts)
    return Dataset(name, train, test, entry.classes, PHOTOGRAPHS, origin=origin)


def load(
    name: DatasetName,
    *,
    data_dir: str | PathLike[str] | None = None,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    download: bool = False,
    max_pixels: int = MAX_PIXELS,
    test_share: float = 0.2,
    task: Task = "classes",
    grid_axes: int | None = None,
    length: int | None = None,
) -> Dataset:
    """Returns the data set called `name`: "digits", "folder", "arrays", or "cifar10", "cifar100" or "stl10".

    Args:
        name: one of `SOURCES`.
        data_dir: for "folder", the folder of the images; for "arrays", the file, or the folder of the .npy files; for a
            published data set, the first folder to search.
        image_size: side of the square images in pixels, only for "folder"; None chooses it as `folder` does.
        cache_dir: folder for the decoded images; None keeps them in memory.
        download: whether to download a published data set that is not found. With False nothing accesses the internet.
        max_pixels: largest width x height of an image that is decoded, for "folder".
        test_share: share of the test images, for "folder" without a folder test and "arrays" without test arrays.
        task: "classes", or, only for "folder" and "arrays", "tags", "values" or "pixels".
        grid_axes: number of axes of the grid, only for "arrays", see `read_arrays`.
        length: number of points that signals are resampled to, only for "arrays"; None keeps them.

    Raises:
        ValueError: no data set has this name, "folder" or "arrays" lacks data_dir, an argument is given for another
            data set, or files are damaged.
        OSError: files are missing or cannot be read, a download failed, or cache_dir cannot be written.
        ImportError: the extra `data` is not installed.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    own = ("folder", "arrays")
    given: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
        "data_dir": (data_dir, None, (*own, *ENTRIES)),
        "download": (download, False, tuple(ENTRIES)),
        "test_share": (test_share, 0.2, own),
        "task": (task, "classes", own),
        "image_size": (image_size, None, ("folder",)),
        "max_pixels": (max_pixels, MAX_PIXELS, ("folder",)),
        "grid_axes": (grid_axes, None, ("arrays",)),
        "length": (length, None, ("arrays",)),
    }
    for option, (value, default, of) in given.items():
        if value != default and name not in of:
            remedy = f"only {', '.join(of)} can have it; name such a data set, or leave it out"
            raise ValueError(f"{option} must be {default} for {name}, got {value}; {remedy}")
    if name == "folder" or name == "arrays":
        if data_dir is None:
            raise ValueError(f"data_dir must be where the images of {name} are, got None; name it")
        if name == "arrays":
            return read_arrays(data_dir, test_share=test_share, task=task, grid_axes=grid_axes, length=length)
        return folder(
            data_dir,
            image_size=image_size,
            cache_dir=cache_dir,
            max_pixels=max_pixels,
            test_share=test_share,
            task=task,
        )
    if name == "digits":
        return digits()
    return published(name, data_dir=data_dir, cache_dir=cache_dir, download=download)
