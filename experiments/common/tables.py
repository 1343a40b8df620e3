"""Renders rows of figures as Markdown tables, as pages, and as panels of a plot."""

import re
import string
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
TEMPLATES = Path(__file__).parents[1] / "templates"
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


class _Format(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None else super().format_field(value, format_spec)


def filled(template: str, **parts: Any) -> str:
    """Returns the text of experiments/templates/TEMPLATE.md, in which each {name} stands for a part, None for nothing.

    A line `name: | {x} | {y:.2f} |` of a table stands for one line per row of the part `name`.
    """
    lines: list[str] = []
    for line in (TEMPLATES / f"{template}.md").read_text("utf-8").splitlines():
        of_rows = re.fullmatch(r"(\w+): (\|.*)", line)
        text, rows = (of_rows[2], parts[of_rows[1]]) if of_rows else (line, [parts])
        lines += [_Format().vformat(text, (), row) for row in rows]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], name: str, program: str, **parts: Any) -> str:
    """Returns a page: the template of a program, the command that makes the page again, and `source`.

    Args:
        rows: the figures; the first one holds the flags of the command, if there are any.
        name: of the files, without a suffix.
        program: the program, and its positional arguments.
        parts: what the template shows besides the first row, `name` and `rows`.
    """
    text = filled(program.split()[0], **{**rows[0], "name": name, "rows": rows, **parts})
    command = f"python -m experiments.{program} {rows[0].get('flags', '')}".strip()
    return f"{text}\nMade by `{command}`.\n\n{source(rows, name)}\n"


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
    """Returns the last line of a page: where its figures are, and on which devices and at which commits they were made.

    Args:
        rows: the figures.
        name: of the files, without a suffix.
    """
    values = {key: sorted({row[key] for row in rows if row.get(key)}) for key in ("device", "commit")}
    words = {"device": "on", "commit": "at commit"}
    verb = "measured" if values["device"] else "computed"
    origin = " ".join(f"{words[key]} {' and '.join(found)}" for key, found in values.items() if found)
    return f"Figures: [{name}.jsonl]({name}.jsonl)" + (f", {verb} {origin}." if origin else ".")


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
