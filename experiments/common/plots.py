"""Draws panels that share a legend and a look, without any window."""

import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = json.loads(Path(__file__).with_name("styles.json").read_text("utf-8"))
"""The look of each architecture in plots: Okabe and Ito's colours, which colour-blind readers can distinguish."""


def panels(columns: int, width: float, height: float, *, rows: int = 1, **options: Any) -> "tuple[Figure, list[Axes]]":
    """Returns a figure and its axes, row by row; sizes in inches, `options` are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def panels_of_depths(rows: list[Any], height: float, *, xlabel: str) -> "tuple[Figure, dict[int, Axes]]":
    """Returns a figure, and a panel for each number of steps per block."""
    depths = sorted({row["steps_per_block"] for row in rows})
    figure, axes = panels(len(depths), max(7, 4 * len(depths)), height, sharey=True)
    for panel, steps in zip(axes, depths, strict=True):
        panel.set(title=f"{steps} steps per block", xlabel=xlabel)
    return figure, dict(zip(depths, axes, strict=True))


def finish(figure: "Figure", path: Path, *, legend: Any = "outside lower center", **options: Any) -> None:
    """Adds grids and one legend for all panels, and writes the figure; `options` are those of `Figure.legend`."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc=legend, fontsize=8, **options)
    save_figure(figure, path, dpi=110)


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Writes a figure in the format of the file's suffix, or PNG if there is none; `options` are those of savefig."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of names in scripts that the font lacks
        figure.savefig(image, **{"format": path.suffix[1:] or "png", **options})
    write_whole(path, image.getvalue())


def draw_curves(rows: list[dict[str, Any]], path: Path, *, title: str, chosen: Iterable[int] = ()) -> None:
    """Plots the rows of metrics.jsonl: losses, and accuracies and mean IoU if there are any; marks `chosen` epochs."""
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    quantities = ["loss", *(name for name in ("accuracy", "mean_iou") if f"train_{name}" in rows[0])]
    figure, panel = panels(len(quantities), 4.5 * len(quantities), 3.6)
    figure.suptitle(title)
    marker = "o" if len(rows) < 25 else None  # more marks would hide the line
    for axes, quantity in zip(panel, quantities, strict=True):
        for part in ("train", "validation", "test"):
            points = {row["epoch"]: row[name] for row in rows if (name := f"{part}_{quantity}") in row}
            if points:
                axes.plot(*zip(*points.items(), strict=True), marker=marker, markersize=3, label=part)
        for epoch in chosen:
            axes.axvline(epoch, color="0.5", linestyle=":", label="chosen epoch")
        axes.set(xlabel="epoch", ylabel=quantity.replace("mean_iou", "mean IoU"))
        axes.locator_params("x", integer=True)
        if quantity != "loss":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel[0].set_yscale("log")
    panel[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = panel[0].get_ylim()
    if high < 10 * low:  # within a decade every tick has a label
        panel[0].yaxis.set_minor_formatter(StrMethodFormatter("{x:.3g}"))
    finish(figure, path, ncols=4)
