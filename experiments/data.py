"""Shows what is in a data set: `python -m experiments.data DATASET`.

Prints the number of images of each class or tag, or the mean and deviation of each value, where the data were read from
and their checksums, and draws examples. With --augmented it draws eight training images, and below them what each
function of `lowcost.data.augment` makes of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from experiments.common import entry, plots, runs
from experiments.common.config import DatasetName, values
from lowcost import data, terminal
from lowcost.data import augment, catalogue, decoding
from lowcost.train.processes import devices

COLUMNS, ROWS = 8, 20
"""Images beside each other, and rows below each other, on a sheet."""
PARTS = {"train": "training", "validation": "validation", "test": "test"}
"""Name of a split → what its images are called."""
Images = NDArray[np.uint8]
"""[B, H, W, C]."""


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
    """folder: resize the images to squares of this side. None: 64 or 32, unless all share a small size."""
    max_pixels: int = decoding.MAX_PIXELS
    """folder: refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes a pixel."""
    task: data.Task = "classes"
    """folder: classes, or the tags or values of labels.csv."""
    test_share: float = 0.2
    """folder: share of the images that become test images, where there is no folder test."""
    validation_share: float = 0.0
    """Share of the training images that become validation images."""
    augmented: bool = False
    """Draw augmented images in place of examples."""
    seed: int = 0
    """Seed of the images to augment and of the random changes."""
    out: Path | None = None
    """File for the sheet; decoded images are cached beside it. None: runs/DATASET.png or runs/DATASET-augmented.png."""


def main(config: DataConfig) -> None:
    """Draws the sheet and prints the tables, or only draws the sheet of augmented images.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    sheet = config.out or Path("runs") / f"{config.dataset}{'-augmented' if config.augmented else ''}.png"
    options = values(config, "data_dir", "image_size", "download", "max_pixels", "task", "test_share")
    dataset = data.load(config.dataset, cache_dir=sheet.parent / runs.CACHE, **options)
    if config.validation_share:
        dataset = dataset.hold_out(config.validation_share)
    if config.augmented:
        chosen = choose(dataset.train.labels, config.seed)
        draw(augmented(dataset.train.images[chosen], chosen, config.seed), sheet, inches=0.8)
        print(f"{terminal.printable(sheet)}: training images {', '.join(map(str, chosen))} of {config.dataset}")
        return
    draw(examples(dataset), sheet)
    splits = {f"{PARTS[part]} images": split for part, split in parts(dataset)}
    columns = [Column(name, f"{len(split):,}", justify="right") for name, split in splits.items()]
    counts = Table({"classes": "class", "tags": "tag"}.get(config.task, "value"), *columns, show_footer=True)
    for name, *cells in summary(dataset):
        counts.add_row(terminal.printable(name), *cells)
    facts = Table("", Column(overflow="fold"), show_header=False)
    for name, value in {**describe(dataset), "examples in": sheet}.items():
        facts.add_row(name, terminal.printable(value))
    Console(soft_wrap=True, markup=False).print(counts, facts, sep="\n")  # a class may be called [red]


def parts(dataset: data.Dataset) -> list[tuple[str, data.Split]]:
    """Returns (name, split) in the order of `PARTS`."""
    return [(part, dataset.splits[part]) for part in PARTS if part in dataset.splits]


def summary(dataset: data.Dataset) -> list[tuple[str, ...]]:
    """Returns a name and a cell per part: the number of images of each class or tag, or mean ± deviation of a value."""
    columns = []
    for _, split in parts(dataset):
        if dataset.scale is not None:
            numbers = split.labels.astype(float) * dataset.scale[1] + dataset.scale[0]
            columns.append([f"{x.mean():.4g} ± {x.std():.4g}" for x in numbers.T])
        else:
            columns.append([f"{np.count_nonzero(has):,}" for has in _members(dataset, split)])
    return list(zip(dataset.classes, *columns, strict=True))


def _members(dataset: data.Dataset, split: data.Split) -> list[NDArray[np.bool_]]:
    """Returns which images belong to each class, or have each tag."""
    columns = range(len(dataset.classes))
    return [split.labels == i if dataset.task == "classes" else split.labels[:, i] > 0.5 for i in columns]


def moments(split: data.Split) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and standard deviation of each channel over all images, in [0, 1], reading a part at a time."""
    counts = np.zeros((split.images.shape[-1], 256), np.int64)  # integers: exact in any order
    for images in split.chunks():
        for channel, levels in enumerate(np.moveaxis(images, -1, 0)):
            counts[channel] += np.bincount(levels.ravel(), minlength=256)
    weights, levels = counts / counts.sum(1, keepdims=True), np.arange(256)[None] / 255
    mean = (weights * levels).sum(1)
    return mean, np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(1))


def describe(dataset: data.Dataset) -> dict[str, str]:
    """Returns size, mean and deviation of the images, where they were read from, and checksums."""
    height, width, channels = dataset.image_shape
    mean, deviation = moments(dataset.train)
    facts = {
        "images": f"{height} x {width} pixels, {channels} channel{'s' * (channels > 1)}",
        "mean": " ".join(f"{x:.4f}" for x in mean),
        "deviation": " ".join(f"{x:.4f}" for x in deviation),
        "read from": dataset.origin,
        **{f"sha256 of {PARTS[part]} images and labels": split.digest for part, split in parts(dataset)},
    }
    if archive := catalogue.ENTRIES.get(dataset.name):
        facts |= {"archive": archive.url, "sha256 of the archive": archive.sha256}
    return facts


def examples(dataset: data.Dataset) -> list[tuple[str, Images]]:
    """Returns the first training images of every class or tag, or images from the smallest to the largest value."""
    train = dataset.train
    if dataset.task == "values":
        places = np.unique(np.linspace(0, len(train) - 1, COLUMNS).astype(int))
        rows = [np.argsort(column, kind="stable")[places] for column in train.labels.T]
    else:
        rows = [np.flatnonzero(members)[:COLUMNS] for members in _members(dataset, train)]
    return [(terminal.printable(name), train.images[row]) for name, row in zip(dataset.classes, rows, strict=True)]


def choose(labels: NDArray, seed: int) -> NDArray[np.integer]:
    """Returns the indices of eight random images, all with different labels if there are as many."""
    order = np.random.default_rng(seed).permutation(len(labels))
    first = np.sort(np.unique(labels[order], axis=0, return_index=True)[1])
    return np.concatenate([order[first], np.delete(order, first)])[:COLUMNS]


def augmented(images: Images, indices: NDArray[np.integer], seed: int) -> list[tuple[str, Images]]:
    """Returns the images, and what each augmentation makes of them, with its arguments in the second line of the name.

    Args:
        images: [B, H, W, C].
        indices: [B], the images' places in the data set.
        seed: of all random changes.
    """
    devices()  # raises if there are none
    hole, places = min(images.shape[1:3]) // 4, jnp.asarray(indices)
    functions: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "images\nas they are": lambda key, x: x,
        "random_resized_crop\nlow=0.8, high=1.2": augment.random_resized_crop,
        "random_translate\npixels=2": augment.random_translate,
        "random_flip\nprobability 1/2": augment.random_flip,
        "alternating_flip\nepoch 0": lambda key, x: augment.alternating_flip(key, x, places, 0),
        "alternating_flip\nepoch 1": lambda key, x: augment.alternating_flip(key, x, places, 1),
        f"cutout\npixels={hole}": partial(augment.cutout, pixels=hole),
    }
    apply = jax.jit(lambda key, x: [function(key, x) for function in functions.values()])
    results = apply(jax.random.key(seed), images / np.float32(255))
    pixels = [np.rint(255 * np.asarray(x).clip(0, 1)).astype(np.uint8) for x in results]
    return list(zip(functions, pixels, strict=True))


def draw(rows: Sequence[tuple[str, Images]], path: Path, *, inches: float = 0.4) -> None:
    """Draws each row of at most eight images beside its name, twenty rows below each other.

    Args:
        rows: names and images.
        path: the file.
        inches: width of an image.
    """
    _, height, width, channels = rows[0][1].shape
    blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    number, gap = len(blocks[0]), max(1, width // 12)
    scale = inches / width
    size = len(blocks) * (COLUMNS * (width + gap) * scale + 1.8), number * (height + gap) * scale + 0.3
    figure, sheets = plots.panels(len(blocks), *size)
    for axes, block in zip(sheets, blocks, strict=True):
        page = np.full((number, height + gap, COLUMNS, width + gap, channels), 240, np.uint8)  # white images stand out
        for row, (_, images) in enumerate(block):
            page[row, :height, : len(images), :width] = np.moveaxis(images, 0, 1)
        page = page.reshape(number * (height + gap), COLUMNS * (width + gap), channels)
        axes.imshow(page[..., :3], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        middles = [row * (height + gap) + (height - 1) / 2 for row in range(len(block))]
        axes.set_yticks(middles, [name for name, _ in block], parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    plots.save_figure(figure, path, dpi=120, bbox_inches="tight")  # long names too


if __name__ == "__main__":
    entry.run(main, DataConfig)
