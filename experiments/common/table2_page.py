"""Renders the page and the plot of Table 2 from the rows that `experiments.table2` writes."""

from pathlib import Path

from experiments.common.config import Architecture, Width
from experiments.common.plots import STYLES, finish, panels
from experiments.common.results import Row, accuracy, filled, source

WIDTHS: dict[str, tuple[Width, ...]] = {"cifar10": ("A", "B"), "cifar100": ("B", "C"), "stl10": ("A", "B")}
"""The widths that the paper's Table 2 has for each data set: its columns."""
_PRINTED: dict[Architecture, tuple[float, ...]] = {
    "resnet": (93.1, 93.0, 71.7, 69.9, 74.9, 75.3),
    "mobilenet": (89.5, 91.6, 65.6, 61.9, 74.9, 77.2),
    "linear_mix": (91.3, 92.1, 67.9, 69.2, 75.6, 75.6),
    "explicit_rd": (88.9, 90.6, 66.1, 65.2, 74.6, 75.9),
    "implicit_rd": (88.7, 90.3, 64.6, 64.9, 73.8, 73.4),
    "circulant_rd": (86.0, 88.0, 60.2, 60.0, 69.6, 70.5),
}
ARCHITECTURES = tuple(_PRINTED)
"""The rows of Table 2."""
_COLUMNS = [(dataset, width) for dataset, widths in WIDTHS.items() for width in widths]
PAPER: dict[tuple[str, Architecture, Width], float] = {
    (dataset, architecture, width): accuracy
    for architecture, row in _PRINTED.items()
    for (dataset, width), accuracy in zip(_COLUMNS, row, strict=True)
}
"""The paper's validation accuracy after 300 epochs in percent, by data set, architecture and width."""


def _paper(row: Row) -> float | None:
    return PAPER.get((row["like"], row["architecture"], row["width"]))


def markdown(rows: list[Row], name: str = "table2") -> str:
    """Returns the page: one table with its command for each kind of images and way to train."""
    sections = "".join(map(_section, _groups(rows)))
    return f"{filled('table2', name=name)}{sections}\n{source(rows, name)}\n"


def _section(group: list[Row]) -> str:
    first = group[0]
    seed, seeds = first["seed"], first["seeds"]
    papers = (f"{paper} %" if (paper := _paper(row)) else None for row in group)
    runs = [row | {"accuracy": accuracy(row), "paper": paper} for row, paper in zip(group, papers, strict=True)]
    grid = {f"{name}s": " ".join(dict.fromkeys(row[name] for row in group)) for name in ("architecture", "width")}
    which = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}, mean ± standard deviation"
    about = {"s": "s" * (first["epochs"] > 1), "which": which, **grid}
    return "\n" + filled("table2_section", **first, **about, runs=runs)


def place(row: Row) -> tuple:
    """Returns what a row is shown for: a newer row with the same place replaces it."""
    return *_kind(row), row["architecture"], row["width"]


def _kind(row: Row) -> tuple:
    return tuple(row[x] for x in ("images", "train_images", "recipe", "epochs", "seed", "seeds", "device", "flags"))


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Returns the rows of each table, in the order of their first rows."""
    kinds = list(dict.fromkeys(map(_kind, rows)))
    return [[row for row in rows if _kind(row) == kind] for kind in kinds]


def draw(rows: list[Row], path: Path) -> None:
    """Draws accuracy against weights, one panel per table; the paper's figures are hollow."""
    from matplotlib.ticker import PercentFormatter

    groups = _groups(rows)
    figure, axes = panels(len(groups), 5.2 * len(groups), 4.2)
    for panel, group in zip(axes, groups, strict=True):
        for row in group:
            style: Row = {"linestyle": "none", "markersize": 7, "alpha": 0.8} | STYLES[row["architecture"]]
            label = f"{row['architecture']} {row['width']}"
            panel.errorbar(row["weights"], row["test_accuracy"], yerr=row["test_accuracy_std"], label=label, **style)
            if (paper := _paper(row)) is not None:
                panel.plot(row["weights"], paper / 100, fillstyle="none", **style)
        title = "{images}\nrecipe {recipe}, {epochs} epochs (hollow: the paper, 300)".format(**group[0])
        panel.set(xscale="log", xlabel="weights", ylabel="test accuracy")
        panel.set_title(title, fontsize=9)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(figure, path, ncols=3)
