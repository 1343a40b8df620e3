"""Data sets by name. A new source is one function that returns a Dataset, and one entry in SOURCES."""

import inspect
from collections.abc import Callable
from os import PathLike

import numpy as np

from lowcost.data.dataset import Dataset, Split
from lowcost.data.folders import folder


def digits() -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images, 12 x 12 x 1, in ten classes.

    The real 8 x 8 scans that come inside scikit-learn, so that nothing has to be downloaded. Every fifth image is a
    test image. The grey values 0..16 become 0..255, and a black frame of two pixels makes the grid 12 x 12: a network
    that halves it twice still has the 3 x 3 points which a 3 x 3 stencil needs, and crops have room to move.

    Returns:
        The data set; a mirrored digit is another sign, so flip is False.
    """
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
    )


SOURCES: dict[str, Callable[..., Dataset]] = {"digits": digits, "folder": folder}


def load(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    image_size: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> Dataset:
    """The data set called `name`.

    Args:
        name: "digits" or "folder".
        data_dir: where the files lie, for a source that reads files.
        image_size: side of the square images in pixels, for a source that resizes; None leaves it to the source.
        cache_dir: where decoded images are kept for the next start, for a source that decodes; None keeps nothing.

    Returns:
        The data set.

    Raises:
        ValueError: no source has this name, it needs data_dir, or its images have a size of their own.
        OSError: as the source raises it.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}; expected one of: {', '.join(SOURCES)}")
    takes = inspect.signature(SOURCES[name]).parameters
    if data_dir is None and "data_dir" in takes:
        raise ValueError(f"{name} needs data_dir: the folder that holds its files, got None")
    if image_size is not None and "image_size" not in takes:
        raise ValueError(f"{name} has images of one size, expected image_size None, got {image_size}")
    options = {"data_dir": data_dir, "image_size": image_size, "cache_dir": cache_dir}
    return SOURCES[name](**{option: value for option, value in options.items() if option in takes})
