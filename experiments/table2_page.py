"""The page and the plot of Table 2, from the lines that `experiments.table2` wrote."""

from pathlib import Path
from typing import Any

from experiments.common.files import save_figure
from experiments.common.styles import STYLES

PAPER: dict[str, dict[str, dict[str, float]]] = {
    "cifar10": {
        "resnet": {"A": 93.1, "B": 93.0},
        "mobilenet": {"A": 89.5, "B": 91.6},
        "linear_mix": {"A": 91.3, "B": 92.1},
        "explicit_rd": {"A": 88.9, "B": 90.6},
        "implicit_rd": {"A": 88.7, "B": 90.3},
        "circulant_rd": {"A": 86.0, "B": 88.0},
    },
    "cifar100": {
        "resnet": {"B": 71.7, "C": 69.9},
        "mobilenet": {"B": 65.6, "C": 61.9},
        "linear_mix": {"B": 67.9, "C": 69.2},
        "explicit_rd": {"B": 66.1, "C": 65.2},
        "implicit_rd": {"B": 64.6, "C": 64.9},
        "circulant_rd": {"B": 60.2, "C": 60.0},
    },
    "stl10": {
        "resnet": {"A": 74.9, "B": 75.3},
        "mobilenet": {"A": 74.9, "B": 77.2},
        "linear_mix": {"A": 75.6, "B": 75.6},
        "explicit_rd": {"A": 74.6, "B": 75.9},
        "implicit_rd": {"A": 73.8, "B": 73.4},
        "circulant_rd": {"A": 69.6, "B": 70.5},
    },
}
"""The paper's validation accuracy after 300 epochs in percent: data set, architecture, width."""


def markdown(rows: list[dict[str, Any]], picture: str) -> str:
    """One table for each kind of images and way to train, with its command; and the picture, by its file's name."""
    text = (
        "# Table 2\n\nAccuracy of the last epoch on all test images; the paper's networks had 300 epochs. Seconds are "
        "those of the clock,\nwith pauses and whatever else the machine did.\n"
        f"\n![accuracy against weights]({picture})\n"
    )
    for kind, group in _groups(rows).items():
        images, train_images, recipe, epochs, seed, seeds, device, flags = kind
        which = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}, mean ± standard deviation"
        text += (
            f"\n## {images}, {epochs} epoch{'s' * (epochs > 1)}\n\n"
            f"{train_images:,} training images, recipe {recipe}, {which}, {device}.\n\n"
            "| network | width | weights | epochs | test accuracy | the paper, 300 epochs | images/s | seconds |\n"
            "|:--|:--|--:|--:|--:|--:|--:|--:|\n"
        )
        for row in group:
            deviation = row["test_accuracy_std"]
            accuracy = f"{100 * row['test_accuracy']:.2f}" + (f" ± {100 * deviation:.2f}" if deviation else "")
            paper = _paper(row)
            speed = f"{row['images_per_second']:,.0f}" if row["images_per_second"] else ""
            text += (
                f"| {row['architecture']} | {row['width']} | {row['weights']:,} | {epochs} | {accuracy} % "
                f"| {f'{paper} %' if paper else ''} | {speed} | {row['train_seconds']:,.0f} |\n"
            )
        grid = {name: " ".join(dict.fromkeys(row[name] for row in group)) for name in ("architecture", "width")}
        text += (
            f"\nMade by `python -m experiments.table2 {group[0]['dataset']} "
            f"{' '.join(f'--{name}s {values}' for name, values in grid.items())} {flags}`.\n"
        )
    return text


def place(row: dict[str, Any]) -> tuple:
    """What one row alone is shown for: a newer one with the same takes its place."""
    return *_kind(row), row["architecture"], row["width"]


def _kind(row: dict[str, Any]) -> tuple:
    return tuple(row[x] for x in ("images", "train_images", "recipe", "epochs", "seed", "seeds", "device", "flags"))


def _groups(rows: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_kind(row), []).append(row)
    return groups


def _paper(row: dict[str, Any]) -> float | None:
    return PAPER.get(row["like"] or "", {}).get(row["architecture"], {}).get(row["width"])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against weights, a panel for each table; the paper's figures are hollow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    groups = _groups(rows)
    figure = Figure(figsize=(5.2 * len(groups), 4.2), layout="constrained")
    for axes, (kind, group) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        images, _, recipe, epochs, *_ = kind
        for row in group:
            style = {"linestyle": "none", "markersize": 7, "alpha": 0.8} | STYLES[row["architecture"]]
            axes.errorbar(
                row["weights"],
                row["test_accuracy"],
                yerr=row["test_accuracy_std"],
                label=f"{row['architecture']} {row['width']}",
                **style,
            )
            if (paper := _paper(row)) is not None:
                axes.plot(row["weights"], paper / 100, fillstyle="none", **style)
        axes.set_xscale("log")
        axes.set_xlabel("weights")
        axes.set_ylabel("test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(f"{images}\nrecipe {recipe}, {epochs} epochs (hollow: the paper, 300)", fontsize=9)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    save_figure(figure, path, dpi=110)
