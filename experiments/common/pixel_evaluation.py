"""Evaluates networks that label every point of an image, for `evaluate`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import evaluation, evaluation_plots
from experiments.common.evaluation import aligned, percent
from experiments.common.files import csv_table
from experiments.common.setup import Setup
from lowcost.data.dataset import Split
from lowcost.terminal import printable
from lowcost.train.calibration import softmax
from lowcost.train.overlap import mean_overlaps, overlaps

SHOWN = 8
"""The largest number of images on the sheet."""


def report(
    ready: Setup, variables: Any, split: Split, print_line: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Prints the figures of all images, and returns the predictions of the ensemble and their confusions in each image.

    Args:
        ready: the run.
        variables: of its networks.
        split: the images.
        print_line: prints.

    Returns:
        uint8 [N, *grid] and int32 [N, K, K].
    """
    names = [*map(printable, ready.dataset.classes)]
    every = predictions(ready, variables, split.images)
    confusions, single = np.empty((len(split), len(names), len(names)), np.int32), []
    for predicted in every:  # the ensemble comes last, so that its confusions remain
        for i, (labels, x) in enumerate(zip(split.labels, predicted, strict=True)):
            confusions[i] = evaluation.point_confusion(labels, x, len(names))
        single.append(confusions.sum(0))
    together = single.pop()
    print_line("\n".join(by_network(np.array(single), together, ready.config.seed)))
    (iou, dice), shares = overlaps(together), evaluation.recall_and_precision(together)
    columns = {"class": names, "points": together.sum(1), "IoU": map(percent, iou), "Dice": map(percent, dice)}
    columns |= dict(zip(("recall", "precision"), (map(percent, x) for x in shares), strict=True))
    print_line(f"\n{aligned([tuple(columns), *zip(*columns.values(), strict=True)])}\n")
    return every[-1], confusions


def predictions(ready: Setup, variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns the class of each point by each network, and last by the mean of their probabilities.

    Returns:
        uint8 [seeds + 1, N, *grid].
    """
    parts, size = [], ready.config.batch_size
    for start in range(0, len(images), size):  # all logits at once could exceed the memory
        outputs = ready.outputs(variables, images[start : start + size])
        together = softmax(outputs).mean(0).argmax(-1)
        parts.append(np.concatenate([outputs.argmax(-1), together[None]]).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def by_network(single: np.ndarray, together: np.ndarray, seed: int) -> list[str]:
    """Returns a line for each network from its confusions [seeds, K, K], of several also their mean and ensemble."""
    words = {"mean IoU": "mean_iou", "mean Dice": "mean_dice", "accuracy": "accuracy"}

    def line(confusion: np.ndarray) -> str:
        figures = mean_overlaps(confusion)
        return ", ".join(f"{word} {figures[name]:.2%}" for word, name in words.items())

    lines = [f"seed {seed + i}: {line(x)}" for i, x in enumerate(single)]
    if len(single) > 1:
        figures = mean_overlaps(single)
        shares = [f"{w} {figures[n].mean():.2%} ± {figures[n].std(ddof=1):.2%}" for w, n in words.items()]
        lines += [f"mean: {', '.join(shares)}", f"ensemble: {line(together)}; all figures below are of the ensemble"]
    return lines


def image_table(classes: Sequence[str], files: Sequence[object], confusions: np.ndarray) -> bytes:
    """Returns one row per image as CSV: the share of correct points, and the IoU of each class that it has."""
    accuracy, iou = mean_overlaps(confusions)["accuracy"], overlaps(confusions)[0]
    rows = np.concatenate([accuracy[:, None], iou], axis=1)
    cells = [["" if np.isnan(x) else f"{x:.6f}" for x in row] for row in rows]
    header = ["image", "accuracy", *(f"IoU {name}" for name in classes)]
    return csv_table(header, [[file, *row] for file, row in zip(files, cells, strict=True)])


def draw(folder: Path, split: Split, predicted: np.ndarray, confusions: np.ndarray, names: list[str]) -> None:
    """Draws the confusions, and the images with the most wrong points beside their labels and predictions."""
    evaluation_plots.draw_confusion(confusions.sum(0), names, folder / "confusion.png")
    accuracy = mean_overlaps(confusions)["accuracy"]
    worst = np.argsort(accuracy, kind="stable")[:SHOWN]  # NaN, of images without labels, comes last
    files = split.files or range(len(split))
    titles = [f"{printable(os.path.basename(str(files[i])))[-26:]}, {percent(accuracy[i])} correct" for i in worst]
    masks = split.labels[worst], predicted[worst]
    evaluation_plots.draw_overlays(split.images[worst], masks, titles, names, folder / "overlays.png")
