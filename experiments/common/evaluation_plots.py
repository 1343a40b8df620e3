"""Draws what a network confuses, how far its probabilities can be trusted, and its most confident mistakes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.evaluation import ratio
from experiments.common.masks import COLOURS, translucent
from experiments.common.plots import finish, panels, save_figure
from lowcost.train.calibration import calibration_error, reliability

NUMBERED, LABELLED = 20, 100
"""The most classes whose numbers of images are written into the confusion matrix, and whose names stand at it."""
BLUE, VERMILION = "#0072B2", "#D55E00"


def draw_confusion(confusion: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws the share of each true class (row) that the network takes for each class (column), in colours."""
    from matplotlib.colors import PowerNorm

    number = len(names)
    size = min(max(4.5, 2.5 + 0.5 * number), 14)
    figure, (axes,) = panels(1, size + 1, size)
    share = ratio(confusion, confusion.sum(1, keepdims=True))
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows rare confusions too
    for (i, j), count in np.ndenumerate(confusion) if number <= NUMBERED else ():
        if count:
            colour = "white" if share[i, j] > 0.3 else "black"
            axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
    ticks = range(0, number, math.ceil(number / LABELLED))
    labels, fontsize = [label(names[i]) for i in ticks], 9 if number <= NUMBERED else 6
    axes.set_xticks(ticks, labels, rotation=90, fontsize=fontsize)
    axes.set_yticks(ticks, labels, fontsize=fontsize)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02, ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1))
    bar.set_label("share of the true class")
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    save_figure(figure, path, dpi=110, bbox_inches="tight")


def draw_reliability(probabilities: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Draws the accuracy of images in bins of confidence, which it equals if the network is calibrated.

    Args:
        probabilities: name of a curve → [N, K].
        labels: [N].
        path: where to write.
    """
    figure, (above, below) = panels(1, 5, 6, rows=2, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="0.5", linestyle="--", label="calibrated")
    styles = (BLUE, "o", "-"), (VERMILION, "s", ":")
    for (name, p), (colour, marker, line) in zip(probabilities.items(), styles, strict=False):
        counts, accuracy, confidence = reliability(p, labels)
        label = f"{name}: expected calibration error {calibration_error(p, labels):.1%}"
        some = counts >= max(1, len(labels) / 200)  # the accuracy of very few images is noise
        above.plot(confidence[some], accuracy[some], color=colour, marker=marker, linestyle=line, label=label)
        below.stairs(counts / len(labels), np.linspace(0, 1, len(counts) + 1), color=colour, linestyle=line)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.set(xlabel="confidence: the largest probability", ylabel="share of images")
    finish(figure, path)


def draw_mistakes(
    images: np.ndarray, titles: Sequence[Sequence[str]], mistakes: int, path: Path, *, masked: bool = False
) -> None:
    """Draws images, signals or volumes below the lines of their titles.

    Args:
        images: [N, *grid, C].
        titles: N of them, each some lines.
        mistakes: number of all mistakes.
        path: where to write.
        masked: whether the last channel is the mask of signals.
    """
    columns = min(6, max(3, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure, axes = panels(columns, 2 * columns, 2.6 * rows + 0.5, rows=rows)
    figure.suptitle(f"the most confident {len(images)} of {mistakes:,} mistakes" if mistakes else "no mistakes")
    for panel in axes:
        panel.set_axis_off()
    for panel, image, title in zip(axes, images, titles, strict=False):
        _show(panel, image, masked)
        panel.set_title("\n".join(label(line, 28) for line in title), fontsize=8)
    save_figure(figure, path, dpi=110, bbox_inches="tight")


def draw_overlays(
    images: np.ndarray, masks: tuple[np.ndarray, np.ndarray], titles: Sequence[str], names: Sequence[str], path: Path
) -> None:
    """Draws each image, signal or volume, below it its labels, and below them the predictions, in translucent colours.

    Args:
        images: [N, *grid, C].
        masks: labels and predictions, each uint8 [N, *grid].
        titles: one for each image.
        names: of the classes, for the legend.
        path: where to write.
    """
    from matplotlib.patches import Patch

    figure, axes = panels(len(images), 2.2 * len(images), 7.5, rows=3)
    for number, panel in enumerate(axes):
        row, i = divmod(number, len(images))
        panel.set_axis_off()
        _show(panel, images[i], masked=False)
        if row:
            mask = masks[row - 1][i]
            mask = mask[len(mask) // 2] if mask.ndim == 3 else mask
            of_signal: Any = {"extent": (-0.5, len(mask) - 0.5, *panel.get_ylim()), "aspect": "auto"}
            options = of_signal if mask.ndim == 1 else {}
            panel.imshow(translucent(np.atleast_2d(mask)), interpolation="nearest", **options)
        panel.set_title([label(titles[i], 34), "label", "prediction"][row], fontsize=8)
    patches = [Patch(color=COLOURS[k] / 255, label=label(name)) for k, name in enumerate(names[:LABELLED])]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8)
    save_figure(figure, path, dpi=110, bbox_inches="tight")


def _show(axes: Any, image: np.ndarray, masked: bool) -> None:
    """Draws a signal, of several channels each scaled to its own range; an image; or a volume's slice at half depth."""
    if image.ndim == 2:
        lines = image[image[:, -1] > 0, :-1] if masked else image
        axes.set_axis_on()
        axes.tick_params(labelsize=6)
        if lines.shape[1] > 1:  # they may have different units
            axes.set_yticks([])
            lines = lines - lines.min(0, keepdims=True).astype(float)
            lines /= np.maximum(lines.max(0, keepdims=True), np.finfo(float).tiny)
        axes.plot(lines, linewidth=0.8)
        return
    pixels = (image[len(image) // 2] if image.ndim == 4 else image).astype(float)
    low, high = (0, 255) if image.dtype == np.uint8 else (pixels.min(), pixels.max())
    pixels = (pixels if pixels.shape[-1] == 3 else pixels[..., 0]) - low
    axes.imshow(pixels / ((high - low) or 1), cmap="gray", vmin=0, vmax=1)


def label(text: str, longest: int = 24) -> str:
    """Returns the beginning of a text, in which matplotlib finds no formula."""
    return (text if len(text) <= longest else f"{text[: longest - 1]}…").replace("$", r"\$")
