"""Measures and corrects how far the probabilities of a classifier are from its accuracy, in NumPy."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

T_MIN, T_MAX = 0.05, 20.0
"""The range of temperatures that `fit_temperature` searches."""


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """exp(z / T) / Σ exp(z / T) along the last axis.

    Args:
        logits: z, real [..., K].
        temperature: T > 0. A larger T makes the probabilities more equal; it changes no order.

    Returns:
        The probabilities, float64 [..., K].
    """
    z = np.asarray(logits, np.float64) / temperature
    weights = np.exp(z - z.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """argmin (1/N) Σ L(softmax(z / T), labels) over 0.05 ≤ T ≤ 20, with the cross entropy L, which is convex in 1/T.

    If every label has the largest logit of its image, the loss falls as T → 0, and has no minimum. The result is then
    1, which leaves the probabilities unchanged. Use images that the network was not trained on: on its training images
    a network is too often right.

    Args:
        logits: z, real and finite [N, K].
        labels: integers [N] in 0 … K − 1.

    Returns:
        The temperature T.

    Raises:
        ValueError: a shape or a value is wrong.
    """
    z, rows = _checked("logits", logits, labels)
    z = z - z[rows]
    if (z <= 0).all():
        return 1.0
    low, high = math.log(T_MIN), math.log(T_MAX)
    for _ in range(40):  # then log T is exact to 1e-11
        middle = (low + high) / 2
        slope = (softmax(z, math.exp(middle)) * z).sum()  # of the loss in 1/T; positive if T is too small
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> tuple[NDArray, NDArray, NDArray]:
    """Returns counts, accuracy and confidence of the images in bins of confidence, their largest probability.

    Args:
        probabilities: real [N, K].
        labels: integers [N] in 0 … K − 1.
        bins: number of bins B ≥ 1; bin b holds the confidences in (b / B, (b + 1) / B].

    Returns:
        For each bin [B] the number of its images, the share of them whose label has the largest probability, and the
        mean of their largest probabilities. The last two are 0 for a bin without images.

    Raises:
        ValueError: a shape or a value is wrong.
    """
    p, _ = _checked("probabilities", probabilities, labels)
    confidence, correct = p.max(-1), p.argmax(-1) == np.asarray(labels)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    accuracy, mean = (np.bincount(which, x, bins) / np.maximum(counts, 1) for x in (correct, confidence))
    return counts, accuracy, mean


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Σ n_b / N · |accuracy_b − confidence_b| over the bins b of `reliability`: the expected calibration error.

    Args:
        probabilities: real [N, K].
        labels: integers [N] in 0 … K − 1.
        bins: number of bins ≥ 1.

    Raises:
        ValueError: a shape or a value is wrong.
    """
    counts, accuracy, confidence = reliability(probabilities, labels, bins)
    return float((counts * np.abs(accuracy - confidence)).sum() / counts.sum())


def _checked(name: str, values: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], tuple[NDArray, NDArray]]:
    """Returns the values as float64, and the indices of the label's value of each image, which add an axis."""
    x, y = np.asarray(values, np.float64), np.asarray(labels)
    if x.ndim != 2 or not x.size or y.shape != x.shape[:1]:
        expected = f"{name} must be [N, K] and labels [N] with N and K ≥ 1"
        raise ValueError(f"{expected}, got {list(x.shape)} and {list(y.shape)}; pass a row and a label for each image")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {x[~np.isfinite(x)][0]}; the network has diverged")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= x.shape[1]:
        got = f"{y.dtype} from {y.min()} to {y.max()}"
        raise ValueError(f"labels must be integers from 0 to {x.shape[1] - 1}, got {got}; pass the indices of classes")
    return x, (np.arange(len(x))[:, None], y[:, None])
