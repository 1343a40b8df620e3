"""Draws curves.png: loss and accuracy over the epochs."""

from pathlib import Path
from typing import Any

from experiments.common.plots import finish, panels

FEW = 25
"""Below this number of epochs, each one is marked."""


def draw(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Plots the rows of metrics.jsonl, training and test: loss on the left, accuracy on the right."""
    from matplotlib.ticker import PercentFormatter

    figure, (loss, accuracy) = panels(2, 9, 3.6)
    figure.suptitle(title)
    marker = "o" if len(rows) < FEW else None
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for part in ("train", "test"):
            points = {row["epoch"]: row[name] for row in rows if (name := f"{part}_{quantity}") in row}
            axes.plot(*zip(*points.items(), strict=True), marker=marker, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.locator_params("x", integer=True)
    loss.set_yscale("log")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(figure, path, ncols=2)
