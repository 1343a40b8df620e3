"""Draws panels that share a legend and a look, without any window."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "resnet": {"color": "#000000", "marker": "X"},
    "mobilenet": {"color": "#E69F00", "marker": "^"},
    "linear_mix": {"color": "#56B4E9", "marker": "D"},
    "explicit_rd": {"color": "#D55E00", "marker": "s"},
    "implicit_rd": {"color": "#0072B2", "marker": "o"},
    "circulant_rd": {"color": "#009E73", "marker": "v"},
    "implicit_circulant_rd": {"color": "#CC79A7", "marker": "P"},
}
"""The look of each architecture in plots: Okabe and Ito's colours, which colour-blind readers can distinguish."""


def panels(columns: int, width: float, height: float, *, rows: int = 1, **options: Any) -> "tuple[Figure, list[Axes]]":
    """Returns a figure and its axes, row by row; sizes in inches, `options` are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


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
    figure.savefig(image, **{"format": path.suffix[1:] or "png", **options})
    write_whole(path, image.getvalue())
