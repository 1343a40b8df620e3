"""Data sets by name. A new source is one function that returns a Dataset, and one entry in SOURCES."""

import inspect
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np

from lowcost.data.archives import read_archive
from lowcost.data.cache import Allocate, cached
from lowcost.data.catalogue import ENTRIES, find_archive, search
from lowcost.data.dataset import Dataset, Split
from lowcost.data.decoding import MAX_PIXELS
from lowcost.data.download import download as download_archive
from lowcost.data.folders import folder
from lowcost.data.prepared import find_prepared, read_prepared
from lowcost.extras import needs_extra

CACHE_FORMAT = 1  # to be raised when the same source comes to give other arrays


def digits() -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images, 12 x 12 x 1, in ten classes.

    The real 8 x 8 scans that come inside scikit-learn, so that nothing has to be downloaded. Every fifth image is a
    test image. The grey values 0..16 become 0..255, and a black frame of two pixels makes the grid 12 x 12: a network
    that halves it twice still has the 3 x 3 points which a 3 x 3 stencil needs, and crops have room to move.

    Returns:
        The data set; a mirrored digit is another sign, so flip is False.
    """
    with needs_extra("data"):
        from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    grey = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = np.pad(grey, ((0, 0), (2, 2), (2, 2), (0, 0)))
    labels = labels.astype(np.int32)
    test = np.arange(len(labels)) % 5 == 0
    return Dataset(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        classes=tuple("0123456789"),
        flip=False,
        origin="scikit-learn's load_digits",
    )


def published(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """CIFAR-10, CIFAR-100 with its fine labels, or the labelled images of STL-10, as their authors published them.

    Taken from what tensorflow-datasets has prepared as array_record, or else from the original binary archive; both
    are looked for in data_dir and where they lie by custom, see `lowcost.data.catalogue.search` and
    `lowcost.data.prepared`. Nothing is unpacked.

    Args:
        name: "cifar10", "cifar100" or "stl10".
        data_dir: looked into first.
        cache_dir: where the images are kept, to be mapped at once by the next start; None keeps them in memory alone.
        download: get an archive that is found nowhere.

    Returns:
        The data set, in the order of its files; flip is True.

    Raises:
        FileNotFoundError: it is nowhere; the message says how to get it.
        ValueError: what was found is damaged.
        OSError: the download failed, or cache_dir cannot be written.
    """
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

    # Two sources, two orders of the images, two caches: which one a run sees does not depend on what was read before.
    prepared = find_prepared(entry, data_dir)
    source = entry.sha256[:16] if prepared is None else f"prepared-{prepared.name}"
    if cache_dir is None:
        records, origin = read(np.empty), entry.filename if prepared is None else str(prepared)
    else:
        path = Path(cache_dir) / f"{name}-{source}-{CACHE_FORMAT}.npy"
        records, origin = cached(path, read, dtype=record, length=length), str(path)
    train, test = (
        Split(part["image"], np.ascontiguousarray(part["label"])) for part in np.split(records, [entry.train])
    )
    return Dataset(name, train, test, entry.classes, flip=True, origin=origin)


SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "folder": folder,
    "cifar10": partial(published, "cifar10"),
    "cifar100": partial(published, "cifar100"),
    "stl10": partial(published, "stl10"),
}


def load(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    download: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Returns the data set called `name`.

    Args:
        name: one of `SOURCES`.
        data_dir: where the files lie, for a source that reads files.
        image_size: side of the square images in pixels, for a source that resizes; None leaves it to the source.
        cache_dir: where decoded images are kept for the next start, for a source that decodes; None keeps nothing.
        download: get what is missing, for a source that is published; without it nothing ever asks the network.
        max_pixels: width times height of an image that are decoded at most, for a source that decodes.

    Returns:
        The data set.

    Raises:
        ValueError: no source has this name, it needs data_dir, or its images have a size of their own.
        OSError: as the source raises it.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}; expected one of: {', '.join(SOURCES)}")
    takes = inspect.signature(SOURCES[name]).parameters
    if data_dir is None and "data_dir" in takes and takes["data_dir"].default is inspect.Parameter.empty:
        raise ValueError(f"{name} needs data_dir: the folder that holds its files, got None")
    if image_size is not None and "image_size" not in takes:
        raise ValueError(f"{name} has images of one size, expected image_size None, got {image_size}")
    options = {"data_dir": data_dir, "image_size": image_size, "cache_dir": cache_dir, "download": download}
    options["max_pixels"] = max_pixels
    return SOURCES[name](**{option: value for option, value in options.items() if option in takes})
