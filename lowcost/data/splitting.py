"""Splits images by their content, so that copies of an image stay together and new images move no old one."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lowcost.terminal import warn


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
