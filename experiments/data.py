"""What is in a data set: `python -m experiments.data DATASET`.

Prints the images of each class, where the bytes lie and their checksums, and draws a sheet of examples.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.common import entry
from experiments.common.config import DatasetName
from experiments.common.files import save_figure
from lowcost.data.decoding import MAX_PIXELS
from lowcost.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lowcost.data import Dataset, Split

EXAMPLES, ROWS = 8, 20


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Show what is in a data set: images of each class, where the bytes lie, checksums, a sheet of examples."""

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """As in training."""
    data_dir: Path | None = None
    """Where the pictures or archives are."""
    download: bool = False
    """Get the archive of cifar10, cifar100 or stl10 if it is nowhere."""
    image_size: int | None = None
    """folder: side of the square that pictures are resized to."""
    max_pixels: int = MAX_PIXELS
    """folder: width times height of an image that are decoded at most; 4 to 16 bytes of memory each."""
    out_dir: Path = Path("runs")
    """Where the sheet and the cache of decoded images are written."""


def main(config: DataConfig) -> None:
    """Prints the tables and draws the sheet.

    Raises:
        ValueError, OSError: there is nothing to show.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lowcost import data

    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=config.out_dir / ".lowcost-cache",
        download=config.download,
        max_pixels=config.max_pixels,
    )
    sheet = config.out_dir / f"{dataset.name}.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    draw(dataset, sheet)

    counts = Table("class", "training images", "test images", show_footer=True)
    for column, split in zip(counts.columns[1:], (dataset.train, dataset.test), strict=True):
        column.justify, column.footer = "right", f"{len(split):,}"
    for row in class_counts(dataset):
        counts.add_row(printable(row[0]), *(f"{count:,}" for count in row[1:]))
    facts = Table("", Column(overflow="fold"), show_header=False)
    for name, value in describe(dataset).items():
        facts.add_row(name, printable(value))
    facts.add_row("examples in", printable(sheet))
    console = Console(soft_wrap=True, markup=False)  # a class may be called [red]
    console.print(counts)
    console.print(facts)


def class_counts(dataset: "Dataset") -> list[tuple[str, int, int]]:
    """(class, training images, test images) in the order of the labels."""
    import numpy as np

    train, test = (
        np.bincount(split.labels, minlength=len(dataset.classes)).tolist() for split in (dataset.train, dataset.test)
    )
    return list(zip(dataset.classes, train, test, strict=True))


def moments(split: "Split") -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
    """Returns mean and standard deviation of each channel over all images, in [0, 1]; a memory map may be large."""
    import numpy as np

    counts = np.zeros((split.images.shape[-1], 256), np.int64)  # how often each value occurs: exact, in any order
    for images in split.chunks():
        for channel, values in enumerate(np.moveaxis(images, -1, 0)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    weights, values = counts / counts.sum(1, keepdims=True), np.arange(256)[None] / 255
    mean = (weights * values).sum(1)
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))


def describe(dataset: "Dataset") -> dict[str, str]:
    """Size, mean and deviation of the images, where they were read from, and checksums."""
    from lowcost.data.catalogue import ENTRIES

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
    if dataset.name in ENTRIES:
        entry = ENTRIES[dataset.name]
        facts |= {"archive": entry.url, "sha256 of the archive": entry.sha256}
    return facts


def draw(dataset: "Dataset", path: Path) -> None:
    """The first training images of every class: a row a class, twenty rows a column."""
    import numpy as np
    from matplotlib.figure import Figure

    height, width, channels = dataset.image_shape
    blocks = [range(start, len(dataset.classes))[:ROWS] for start in range(0, len(dataset.classes), ROWS)]
    rows = len(blocks[0])
    figure = Figure(figsize=(5 * len(blocks), 0.4 * rows * height / width + 0.4), layout="constrained")
    for axes, classes in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        page = np.full((rows * height, EXAMPLES * width, channels), 255, np.uint8)
        for i, label in enumerate(classes):
            for j, example in enumerate(np.flatnonzero(dataset.train.labels == label)[:EXAMPLES]):
                page[i * height : (i + 1) * height, j * width : (j + 1) * width] = dataset.train.images[example]
        axes.imshow(page.squeeze(-1) if channels == 1 else page[..., :3], cmap="gray", interpolation="nearest")
        places = [(i + 0.5) * height - 0.5 for i in range(len(classes))]
        axes.set_yticks(places, [printable(dataset.classes[c]) for c in classes], parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    save_figure(figure, path, dpi=120)


if __name__ == "__main__":
    entry.run(main, DataConfig)
