"""Scales the numbers of images, signals and volumes, for NumPy and JAX alike; imports NumPy only."""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import jax

Images = TypeVar("Images", "jax.Array", np.ndarray)
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""(means, standard deviations)."""


def to_unit_range(images: Images) -> Images:
    """(x - min) / (max - min) of integers, with min and max of their dtype; floats keep their values.

    No mean is subtracted: this is left to a network with moments, or to the normalisation after its opening layer.

    Args:
        images: of any shape; uint8, uint16, int8 or int16, or real floating point. Integers with more bits rarely fill
            their range, and are an error. NumPy arrays are scaled by NumPy.

    Returns:
        float32 in [0, 1] for integers; floats promoted to at least float32, with unchecked values.

    Raises:
        TypeError: the images have another dtype.
    """
    dtype = images.dtype
    if dtype.name.startswith(("float", "bfloat")):
        return images.astype(np.float32 if dtype.itemsize < 4 else dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        remedy = "cast grey levels to the dtype whose range they fill, e.g. np.uint8, and others to float32"
        raise TypeError(f"images must be (u)int8, (u)int16 or real floating point, got {dtype}; {remedy}")
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return (images.astype(np.float32) - low) / (high - low)


def are_moments(moments: Any, count: int | None = None) -> bool:
    """Returns whether these are finite means and as many finite deviations above 0: `count` of each, or at least one.

    Args:
        moments: (means, deviations), or anything else.
        count: number of means.
    """
    try:
        numbers = np.asarray(moments)
    except ValueError:  # rows of different lengths
        return False
    fits = numbers.ndim == 2 and len(numbers) == 2 and numbers.shape[1] == (count or max(1, numbers.shape[1]))
    return bool(fits and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all() and (numbers[1] > 0).all())


def to_standard_units(images: Images, moments: Moments, masked: bool = False) -> Images:
    """(x − mean) / deviation of each channel; of masked signals 0 on the padding, with the mask as it is.

    Args:
        images: float32 [B, *grid, C], see `to_unit_range`.
        moments: (means, deviations) of the channels, without the mask.
        masked: whether the last channel is a mask, see `lowcost.data.Dataset`.

    Returns:
        Images shaped as the input.
    """
    means, deviations = _per_channel(moments, images.ndim, masked)
    standard = (images - means) / deviations
    return standard * images[..., -1:] if masked else standard


def from_standard_units(images: Images, moments: Moments, masked: bool = False) -> Images:
    """x · deviation + mean of each channel: the inverse of `to_standard_units`.

    Args:
        images: float32 [B, *grid, C] in units of the deviations.
        moments, masked: as in `to_standard_units`.

    Returns:
        Images shaped as the input.
    """
    means, deviations = _per_channel(moments, images.ndim, masked)
    scaled = images * deviations + means
    return scaled * images[..., -1:] if masked else scaled


def _per_channel(moments: Moments, rank: int, masked: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns means and deviations, float32 [1, ..., 1, C], of a mask 0 and 1, which leave it as it is."""
    pairs = zip(moments, ((0.0,), (1.0,)), strict=True)
    means, deviations = (
        np.array((*own, *(of_mask if masked else ())), np.float32).reshape(*[1] * (rank - 1), -1)
        for own, of_mask in pairs
    )
    return means, deviations
