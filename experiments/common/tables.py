"""Renders rows of figures as Markdown tables and as panels of a plot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.files import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""The figures of one measurement, by name."""
Columns = Mapping[str, str | Callable[[Row], str]]
"""Heading → a cell: a format string over the names of a row, or a function of the row."""


def table(rows: Sequence[Row], columns: Columns, *, text: int = 1) -> str:
    """Returns a Markdown table, one line per row.

    Args:
        rows: the figures.
        columns: heading → cell.
        text: number of leading columns that hold text, aligned to the left; the others hold numbers.
    """
    cells = [[cell.format(**row) if isinstance(cell, str) else cell(row) for cell in columns.values()] for row in rows]
    alignment = [":--"] * text + ["--:"] * (len(columns) - text)
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns), alignment, *cells])


def accuracy(row: Row) -> str:
    """Returns the test accuracy of a result in percent, with the standard deviation if there are several seeds."""
    deviation = row["test_accuracy_std"]
    return f"{100 * row['test_accuracy']:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}") + " %"


def source(rows: Sequence[Row], name: str) -> str:
    """Returns the last line of a page: where its figures are, on which devices and at which commits they were measured.

    Args:
        rows: the figures.
        name: of the files, without a suffix.
    """
    values = {key: sorted({row[key] for row in rows if row.get(key)}) for key in ("device", "commit")}
    words = {"device": "on", "commit": "at commit"}
    measured = " ".join(f"{words[key]} {' and '.join(found)}" for key, found in values.items() if found)
    return f"Figures: [{name}.jsonl]({name}.jsonl)" + (f", measured {measured}." if measured else ".")


def panels(count: int, width: float, height: float, **options: Any) -> "tuple[Figure, list[Axes]]":
    """Returns a figure and its axes, side by side; sizes in inches, `options` are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def finish(figure: "Figure", path: Path, *, legend: Any = "outside lower center", **options: Any) -> None:
    """Adds grids and one legend for all panels, and writes the figure; `options` are those of `Figure.legend`."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc=legend, fontsize=8, **options)
    save_figure(figure, path, dpi=110)
