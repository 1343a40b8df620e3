"""Shows what is in a data set: `python -m experiments.data DATASET`.

Prints the number of images of each class, where the data were read from and their checksums, and draws examples.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from experiments.common import entry
from experiments.common.config import DatasetName
from experiments.common.files import save_figure
from experiments.common.runs import CACHE
from lowcost import data
from lowcost.data.catalogue import ENTRIES
from lowcost.data.decoding import MAX_PIXELS
from lowcost.terminal import printable

EXAMPLES, ROWS = 8, 20
"""Examples of each class, and classes below each other, on the sheet."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, by the flags of `experiments.train`."""

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """Name of the data set, as in training."""
    data_dir: Path | None = None
    """Folder of the images or archives."""
    download: bool = False
    """Download the archive of cifar10, cifar100 or stl10 if it is not found."""
    image_size: int | None = None
    """folder: resize the images to squares of this side. None: keep their size, which they must share."""
    max_pixels: int = MAX_PIXELS
    """folder: refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes a pixel."""
    out: Path | None = None
    """File for the sheet of examples; decoded images are cached beside it. None: runs/DATASET.png."""


def main(config: DataConfig) -> None:
    """Prints the tables and draws the sheet.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    sheet = config.out or Path("runs") / f"{config.dataset}.png"
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=sheet.parent / CACHE,
        download=config.download,
        max_pixels=config.max_pixels,
    )
    draw(dataset, sheet)
    counts = Table("class", "training images", "test images", show_footer=True)
    for column, split in zip(counts.columns[1:], (dataset.train, dataset.test), strict=True):
        column.justify, column.footer = "right", f"{len(split):,}"
    for name, *numbers in class_counts(dataset):
        counts.add_row(printable(name), *(f"{number:,}" for number in numbers))
    facts = Table("", Column(overflow="fold"), show_header=False)
    for name, value in {**describe(dataset), "examples in": sheet}.items():
        facts.add_row(name, printable(value))
    console = Console(soft_wrap=True, markup=False)  # a class may be called [red]
    console.print(counts)
    console.print(facts)


def class_counts(dataset: data.Dataset) -> list[tuple[str, int, int]]:
    """Returns (class, number of training images, number of test images) in the order of the labels."""
    splits, number = (dataset.train, dataset.test), len(dataset.classes)
    train, test = (np.bincount(split.labels, minlength=number).tolist() for split in splits)
    return list(zip(dataset.classes, train, test, strict=True))


def moments(split: data.Split) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and standard deviation of each channel over all images, in [0, 1], reading a part at a time."""
    counts = np.zeros((split.images.shape[-1], 256), np.int64)  # integers: exact in any order
    for images in split.chunks():
        for channel, values in enumerate(np.moveaxis(images, -1, 0)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    weights, values = counts / counts.sum(1, keepdims=True), np.arange(256)[None] / 255
    mean = (weights * values).sum(1)
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))


def describe(dataset: data.Dataset) -> dict[str, str]:
    """Returns size, mean and deviation of the images, where they were read from, and checksums."""
    height, width, channels = dataset.image_shape
    mean, deviation = moments(dataset.train)
    facts = {
        "images": f"{height} x {width} pixels, {channels} channel{'s' * (channels > 1)}",
        "mean": " ".join(f"{x:.4f}" for x in mean),
        "deviation": " ".join(f"{x:.4f}" for x in deviation),
        "read from": dataset.origin,
        "sha256 of training images and labels": dataset.train.digest,
        "sha256 of test images and labels": dataset.test.digest,
    }
    if archive := ENTRIES.get(dataset.name):
        facts |= {"archive": archive.url, "sha256 of the archive": archive.sha256}
    return facts


def draw(dataset: data.Dataset, path: Path) -> None:
    """Draws the first training images of every class: one row per class, twenty classes below each other."""
    from matplotlib.figure import Figure

    height, width, channels = dataset.image_shape
    blocks = [range(start, len(dataset.classes))[:ROWS] for start in range(0, len(dataset.classes), ROWS)]
    rows = len(blocks[0])
    figure = Figure(figsize=(5 * len(blocks), 0.4 * rows * height / width + 0.4), layout="constrained")
    for axes, classes in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        page = np.full((rows, height, EXAMPLES, width, channels), 255, np.uint8)
        for row, label in enumerate(classes):
            examples = dataset.train.images[np.flatnonzero(dataset.train.labels == label)[:EXAMPLES]]
            page[row, :, : len(examples)] = np.moveaxis(examples, 0, 1)
        page = page.reshape(rows * height, EXAMPLES * width, channels)
        axes.imshow(page.squeeze(-1) if channels == 1 else page[..., :3], cmap="gray", interpolation="nearest")
        middles = [(row + 0.5) * height - 0.5 for row in range(len(classes))]
        axes.set_yticks(middles, [printable(dataset.classes[label]) for label in classes], parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    save_figure(figure, path, dpi=120)


if __name__ == "__main__":
    entry.run(main, DataConfig)
