"""Splits images by their content, so that copies of an image stay together and new images move no old one.

It also checks and reports what a part lacks.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lowcost.data.tasks import IGNORED, Task
from lowcost.terminal import listed, printable, warn


def check_share(name: str, share: float) -> None:
    """Raises ValueError unless 0 < share < 1."""
    if not 0 < share < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {share}")


def fractions(digests: Iterable[bytes]) -> NDArray[np.float64]:
    """int(first 8 bytes) / 2⁶⁴ of each sha256, uniform in [0, 1]; a part of share s holds those below s.

    Whether an image belongs to the part depends on its content alone. The part is therefore about s of any class.

    Args:
        digests: N of them.

    Returns:
        float64 [N].
    """
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])


def pixel_fractions(images: Iterable[NDArray]) -> NDArray[np.float64]:
    """Returns the `fractions` of the images' pixels, after a salt that makes them independent of those of files."""
    return fractions(hashlib.sha256(b"pixels" + image.tobytes()).digest() for image in images)


def warn_copies(where: object, parts: Mapping[str, Iterable[NDArray]]) -> None:
    """Prints one line on stderr for each part that shares images with train, the first part."""
    (_, train), *others = ((part, pixel_fractions(images)) for part, images in parts.items())
    for part, fractions_of_part in others:
        if copies := int(np.isin(fractions_of_part, train).sum()):
            warn(f"{where}: {copies:,} {part} images are copies of training images; remove them")


def class_counts(labels: NDArray, classes: int) -> NDArray[np.int64]:
    """Returns the number of images or points of each class, int64 [classes]."""
    parts = np.array_split(labels.ravel(), 1 + labels.size // 2**22)  # bincount takes 8 bytes per label
    return np.sum([np.bincount(part, minlength=256 + classes)[:classes] for part in parts], axis=0)


def check_kept(
    name: str, share: float, taken: NDArray[np.bool_], labels: NDArray, classes: tuple[str, ...], task: Task
) -> None:
    """Raises ValueError if the share takes all images or none, or all of a class."""
    if taken.all() or not taken.any():
        got = f"{share}, which takes {taken.sum()} of {len(taken)}"
        raise ValueError(f"{name} must leave images on both sides, got {got}; choose another share or add images")
    lost = np.setdiff1d(labels, labels[~taken]) if task == "classes" else ()
    if len(lost):
        names = printable(listed([classes[i] for i in lost]))
        raise ValueError(f"{name} must leave training images of {names}, got {share}; decrease it or add images")


def warn_absent(where: str, part: str, labels: NDArray, classes: tuple[str, ...], task: Task) -> None:
    """Prints one line on stderr that names the classes or tags that no label has, if there are any."""
    if task == "values":
        return
    counts = labels.sum(0) if task == "tags" else class_counts(labels, len(classes))
    if names := [name for name, count in zip(classes, counts, strict=True) if not count]:
        ignored = f"; {IGNORED} means no label" if task == "pixels" and (labels == IGNORED).any() else ""
        warn(f"{where}: no {part} images of {listed(names)}{ignored}")
