"""Measures how well the predicted points of each class cover the true ones, in NumPy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def overlaps(confusion: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|A ∩ B| / |A ∪ B| and 2 |A ∩ B| / (|A| + |B|): IoU and Dice of the true points A and the predicted points B.

    Args:
        confusion: [..., K, K], the numbers of points of class i that are predicted as class j.

    Returns:
        IoU and Dice of each class, [..., K]; NaN for a class without true and predicted points.
    """
    counts = np.asarray(confusion, np.float64)
    both, sizes = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2)
    sizes = np.where(sizes > 0, sizes, np.nan)
    return both / (sizes - both), 2 * both / sizes


def mean_overlaps(confusion: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Returns the share of correct points, and the means of IoU and Dice over the classes that have them.

    Args:
        confusion: [..., K, K], see `overlaps`.

    Returns:
        {"accuracy", "mean_iou", "mean_dice"}, each [...]; NaN without points.
    """
    counts = np.asarray(confusion, np.float64)
    points = counts.sum((-2, -1))
    iou, dice = overlaps(counts)
    classes = np.where(points > 0, np.isfinite(iou).sum(-1), np.nan)
    correct = np.trace(counts, axis1=-2, axis2=-1) / np.where(points > 0, points, np.nan)
    return {"accuracy": correct, "mean_iou": np.nansum(iou, -1) / classes, "mean_dice": np.nansum(dice, -1) / classes}
