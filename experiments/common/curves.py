"""curves.png: loss and accuracy over the epochs."""

from pathlib import Path
from typing import Any

from experiments.common.files import save_figure


def draw(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Plot the rows of metrics.jsonl, training and test, loss left and accuracy right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    marker = "o" if len(rows) < 25 else None
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "test"):
            there = {row["epoch"]: row[name] for row in rows if (name := f"{part}_{quantity}") in row}
            axes.plot(*zip(*there.items(), strict=True), marker=marker, markersize=3, label=part)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.set_yscale("log")
    save_figure(figure, path, dpi=120)
