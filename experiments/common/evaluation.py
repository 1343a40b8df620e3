"""Counts what a network gets right and what it confuses, and shows such figures as text; in NumPy."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lowcost.data import IGNORED
from lowcost.train.calibration import softmax


def answers(task: str, outputs: np.ndarray, temperatures: Sequence[float] | None = None) -> np.ndarray:
    """Returns what networks [seeds, N, K] answer together: the mean of their probabilities or values, [N, K].

    Args:
        task: "classes", "tags" or "values".
        outputs: logits or values.
        temperatures: of each network for classes; None: 1.
    """
    if task == "classes":
        outputs = softmax(outputs / np.reshape(temperatures or [1.0], (-1, 1, 1)))
    elif task == "tags":
        outputs = sigmoid(outputs)
    return outputs.mean(0)


def sigmoid(outputs: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), without overflow: the probability of each tag."""
    return (1 + np.tanh(np.asarray(outputs, np.float64) / 2)) / 2


def quality(task: str, answers: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy of answers [N, K], or the mean over tags of F1, or over values of R²."""
    if task == "classes":
        return float((answers.argmax(-1) == labels).mean())
    figures = tag_figures(labels > 0.5, answers >= 0.5) if task == "tags" else value_figures(labels, answers)
    defined = figures[-1][~np.isnan(figures[-1])]
    return float(defined.mean()) if len(defined) else math.nan


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross entropy of softmax(logits [N, K]) and the labels [N]."""
    z = logits - logits.max(-1, keepdims=True)
    return float((np.log(np.exp(z).sum(-1)) - z[np.arange(len(labels)), labels]).mean())


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns the numbers of images of class i that the network takes for class j, int64 [i, j]."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def point_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns the numbers of points of class i that are predicted as class j, int64 [i, j]; without ignored points."""
    known = labels != IGNORED
    return confusion_matrix(labels[known].astype(np.int64), predicted[known], classes)


def recall_and_precision(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of each class that is found, and of each answer that is right; NaN where there are none."""
    right = np.diag(confusion)
    return ratio(right, confusion.sum(1)), ratio(right, confusion.sum(0))


def confusions(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (true class, predicted class, number of images) of all mistakes, the most frequent ones first."""
    mistakes = confusion - np.diag(np.diag(confusion))
    rows = np.argsort(-mistakes, axis=None, kind="stable")[: np.count_nonzero(mistakes)]
    return [(int(i), int(j), int(mistakes[i, j])) for i, j in zip(*np.unravel_index(rows, mistakes.shape), strict=True)]


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the indices of the images with a wrong answer, the most confident first."""
    order = np.argsort(-probabilities.max(-1), kind="stable")
    return order[(probabilities.argmax(-1) != labels)[order]]


def tag_figures(given: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns recall, precision and F1 of each tag from bool [N, K]; NaN where there is nothing to divide by."""
    both, images, answers = (given & found).sum(0), given.sum(0), found.sum(0)
    return ratio(both, images), ratio(both, answers), ratio(2 * both, images + answers)


def value_figures(labels: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns root mean square error and R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)² of each value from [N, K]."""
    errors = ((labels - answers) ** 2).sum(0)
    return np.sqrt(errors / len(labels)), 1 - ratio(errors, ((labels - labels.mean(0)) ** 2).sum(0))


def ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns x / y, NaN where y is 0."""
    return x / np.where(y == 0, np.nan, y)


def number(x: float, deviation: float, digits: int = 4) -> str:
    """Returns x with this number of digits of its deviation, which may be much smaller: 2459011.342 for 7.149."""
    larger = math.floor(math.log10(abs(x))) - math.floor(math.log10(deviation)) if x and math.isfinite(x) else 0
    return f"{x:.{digits + max(0, larger)}g}"


def number_cells(row: Sequence[float], deviations: ArrayLike = 1.0) -> list[str]:
    """Returns the cells of a table for probabilities or values, with six digits of the deviation of each."""
    of_each = np.broadcast_to(deviations, len(row))
    return [number(x, deviation, 6) for x, deviation in zip(row, of_each, strict=True)]


def percent(share: float) -> str:
    """Returns a share in percent, or a dash for NaN."""
    return "-" if np.isnan(share) else f"{share:.1%}"


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Returns lines of aligned columns, the first one to the left and all others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in cells]
    return "\n".join("  ".join(line) for line in lines)
