"""Renders the page and the plot of Table 2 from the rows that `experiments.table2` writes."""

import json
from pathlib import Path

from experiments.common.config import Architecture, Width
from experiments.common.plots import STYLES, finish, panels
from experiments.common.results import Row, accuracy, filled, grouped, source

_PRINTED = json.loads(Path(__file__).with_name("table2_paper.json").read_text("utf-8"))
WIDTHS: dict[str, tuple[Width, ...]] = {dataset: tuple(columns) for dataset, columns in _PRINTED.items()}
"""The widths that the paper's Table 2 has for each data set: its columns."""
ARCHITECTURES: tuple[Architecture, ...] = tuple(_PRINTED["cifar10"]["A"])
"""The rows of Table 2."""


def paper(dataset: str | None, architecture: Architecture, width: Width) -> float | None:
    """Returns the paper's validation accuracy after 300 epochs in percent; None for a cell that it leaves empty."""
    return _PRINTED.get(dataset, {}).get(width, {}).get(architecture)


def markdown(rows: list[Row], name: str = "table2") -> str:
    """Returns the page: one table with its command for each kind of images and way to train."""
    sections = "".join(map(_section, _groups(rows)))
    return f"{filled('table2', name=name)}{sections}\n{source(rows, name)}\n"


def _section(group: list[Row]) -> str:

    def cells(row: Row) -> Row:
        printed = _of_the_paper(row)
        return row | {"accuracy": accuracy(row), "paper": printed and f"{printed} %"}

    first = group[0]
    seed, seeds = first["seed"], first["seeds"]
    grid = {f"{name}s": " ".join(dict.fromkeys(row[name] for row in group)) for name in ("architecture", "width")}
    which = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}, mean ± standard deviation"
    about = {"s": "s" * (first["epochs"] > 1), "which": which, **grid}
    return "\n" + filled("table2_section", **first, **about, runs=map(cells, group))


def _of_the_paper(row: Row) -> float | None:
    """Returns the paper's figure for a row; its networks have 3x3 stencils."""
    return paper(row["like"], row["architecture"], row["width"]) if row["kernel_size"] == 3 else None


def place(row: Row) -> tuple:
    """Returns what a row is shown for: a newer row with the same place replaces it."""
    return *_kind(row), row["architecture"], row["width"]


def _kind(row: Row) -> tuple:
    return tuple(row[x] for x in ("images", "train_images", "recipe", "epochs", "seed", "seeds", "device", "flags"))


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Returns the rows of each table, in the order of their first rows; in older rows stencils have 3 points."""
    return grouped([{"kernel_size": 3, **row} for row in rows], _kind)


def draw(rows: list[Row], path: Path) -> None:
    """Draws accuracy against weights, one panel per table of several networks; the paper's figures are hollow."""
    from matplotlib.ticker import PercentFormatter

    groups = _groups(rows)
    groups = [group for group in groups if len(group) > 1] or groups
    figure, axes = panels(len(groups), 5.2 * len(groups), 4.2)
    for panel, group in zip(axes, groups, strict=True):
        for row in group:
            style: Row = {"linestyle": "none", "markersize": 7, "alpha": 0.8} | STYLES[row["architecture"]]
            label = f"{row['architecture']} {row['width']}"
            panel.errorbar(row["weights"], row["test_accuracy"], yerr=row["test_accuracy_std"], label=label, **style)
            if printed := _of_the_paper(row):
                panel.plot(row["weights"], printed / 100, fillstyle="none", **style)
        about = "recipe {recipe}, {epochs} epochs, stencil size {kernel_size}"
        about += " (hollow: the paper, 300)" if any(map(_of_the_paper, group)) else ""
        title = f"{{images}}\n{about}".format(**group[0])
        panel.set(xscale="log", xlabel="weights", ylabel="test accuracy")
        panel.set_title(title, fontsize=9)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(figure, path, ncols=3)
