"""Shows what is in a data set: `python -m experiments.data DATASET`.

Prints the number of images of each class or tag, or the mean and deviation of each value, the range and the moments of
the channels, where the data were read from and their checksums, and draws examples: images, the central slices of
volumes, or signals with one colour per channel. With --augmented it draws eight training images, and below them what
each function of `lowcost.data.augment` makes of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from experiments.common import datasets, entry, plots
from experiments.common.config import DatasetName
from experiments.common.evaluation import number
from experiments.common.masked_augment import cropped, of_values, translated
from lowcost import data, terminal
from lowcost.data import augment, catalogue, decoding
from lowcost.train.processes import devices

COLUMNS, ROWS = 8, 20
"""Images beside each other, and rows below each other, on a sheet."""
PARTS = {"train": "training", "validation": "validation", "test": "test"}
"""Name of a split → what its images are called."""
Images = NDArray
"""[B, *grid, C]."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, by the flags of `experiments.train`."""

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """Name of the data set, as in training."""
    data_dir: Path | None = None
    """Folder of the images or archives. arrays: the file."""
    download: bool = False
    """Download the archive of cifar10, cifar100 or stl10 if it is not found."""
    image_size: int | None = None
    """folder: resize the images to squares of this side. None: 64 or 32, unless all share a small size."""
    max_pixels: int = decoding.MAX_PIXELS
    """folder: refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes per pixel."""
    task: data.Task = "classes"
    """folder, arrays: classes, the tags or values of labels.csv or the labels, or the classes of pixels."""
    test_share: float = 0.2
    """folder, arrays: share of the images that become test images, where there are none."""
    grid_axes: int | None = None
    """arrays: number of axes of the grid, 1 for signals, 2 for images, 3 for volumes. None: if clear from the shape."""
    length: int | None = None
    """arrays: resample every signal linearly to this number of points. None: keep them."""
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
    dataset = datasets.load(config, sheet.parent / datasets.CACHE)
    if config.validation_share:
        dataset = dataset.hold_out(config.validation_share)
    if config.augmented:
        chosen = choose(dataset.train.labels, config.seed)
        rows = augmented(dataset.train.images[chosen], chosen, config.seed, dataset.moments, dataset.masked)
        draw(rows, sheet, inches=0.8, masked=dataset.masked)
        print(f"{terminal.printable(sheet)}: training images {', '.join(map(str, chosen))} of {config.dataset}")
        return
    draw(examples(dataset), sheet, masked=dataset.masked)
    splits = {f"{PARTS[part]} images": split for part, split in parts(dataset)}
    columns = [Column(name, f"{len(split):,}", justify="right") for name, split in splits.items()]
    counts = Table({"tags": "tag", "values": "value"}.get(dataset.task, "class"), *columns, show_footer=True)
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
            pairs = zip(numbers.T, dataset.scale[1], strict=True)
            columns.append([f"{number(x.mean(), deviation)} ± {x.std():.4g}" for x, deviation in pairs])
        else:
            columns.append([f"{np.count_nonzero(has):,}" for has in _members(dataset, split)])
    return list(zip(dataset.classes, *columns, strict=True))


def _members(dataset: data.Dataset, split: data.Split) -> list[NDArray[np.bool_]]:
    """Returns which images belong to each class, have each tag, or have points of each class."""
    columns = range(len(dataset.classes))
    if dataset.task == "pixels":
        return [(split.labels == i).any(tuple(range(1, split.labels.ndim))) for i in columns]
    return [split.labels == i if dataset.task == "classes" else split.labels[:, i] > 0.5 for i in columns]


def describe(dataset: data.Dataset) -> dict[str, str]:
    """Returns size, range, mean and deviation of the images, where they were read from, and checksums.

    Range, mean and deviation are those of the numbers in the file; mean and deviation of uint8 are from 0 to 1.
    """
    (*grid, channels), masked, dtype = dataset.image_shape, dataset.masked, dataset.train.images.dtype
    scaled = "" if dtype == np.float32 else f", scaled from {np.iinfo(dtype).min}..{np.iinfo(dtype).max} to 0..1"
    scale, form = (255, ".4f") if dtype == np.uint8 else (1, ".4g")
    last = "" if dtype == np.uint8 else ", which the network standardises"
    extremes = [(part.min(0), part.max(0)) for part in dataset.train.points(masked=masked) if len(part)]
    lows, highs = np.min([x for x, _ in extremes], 0), np.max([x for _, x in extremes], 0)
    means, deviations = dataset.train.moments(masked=masked)
    size, channels = " x ".join(map(str, grid)), channels - masked
    kind, unit = {1: ("signals", "points"), 2: ("images", "pixels")}.get(len(grid), ("volumes", "points"))
    facts = {
        kind: f"{size} {unit}, {channels} channel{'s' * (channels > 1)}",
        "numbers": f"{dtype}{scaled}{last}",
        "range": " ".join(f"{x:.4g}..{y:.4g}" for x, y in zip(lows, highs, strict=True)),
        "mean": " ".join(f"{x / scale:{form}}" for x in means),
        "deviation": " ".join(f"{x / scale:{form}}" for x in deviations),
        "read from": dataset.origin,
        **{f"sha256 of {PARTS[part]} images and labels": split.digest for part, split in parts(dataset)},
    }
    if masked:
        lengths = np.concatenate([split.images[..., -1].sum(1) for split in dataset.splits.values()])
        facts["lengths"] = f"{lengths.min():.0f}..{lengths.max():.0f} points, with a mask"
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


def augmented(
    images: Images,
    indices: NDArray[np.integer],
    seed: int,
    moments: data.Moments | None = None,
    masked: bool = False,
) -> list[tuple[str, Images]]:
    """Returns the images, and what each augmentation makes of them, with its arguments in the second line of the name.

    Masks move with their signals and are otherwise left as they are, as in training.

    Args:
        images: [B, *grid, C].
        indices: [B], the images' places in the data set.
        seed: of all random changes.
        moments: by which images are standardised first, or None.
        masked: whether the last channel is a mask.
    """
    devices()  # raises if there are none
    side, places = min(images.shape[1:-1]), jnp.asarray(indices)
    shift, hole = min(2, side - 1), side // 4

    def values_by(function: Callable[..., jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda key, x: of_values(partial(function, key), x, masked)

    functions: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "images\nas they are": lambda key, x: x,
        "random_resized_crop\nlow=0.8, high=1.2": partial(cropped, masked=masked),
        f"random_translate\npixels={shift}": partial(translated, pixels=shift, masked=masked),
        "random_flip\nprobability 1/2": augment.random_flip,
        "alternating_flip\nepoch 0": lambda key, x: augment.alternating_flip(key, x, places, 0),
        "alternating_flip\nepoch 1": lambda key, x: augment.alternating_flip(key, x, places, 1),
        f"cutout\npixels={hole}": values_by(partial(augment.cutout, pixels=hole)),
        **({} if masked else {"cutmix\nprobability=1": lambda key, x: augment.cutmix(key, x)[0]}),
        "random_scale\nspread=0.1": values_by(augment.random_scale),
        "jitter\ndeviation=0.1": values_by(augment.jitter),
    }
    inputs = data.to_unit_range(images)
    inputs = inputs if moments is None else data.to_standard_units(inputs, moments, masked)
    apply = jax.jit(lambda key, x: [function(key, x) for function in functions.values()])
    results = [np.asarray(x) for x in apply(jax.random.key(seed), inputs)]
    if images.dtype == np.uint8:
        results = [np.rint(255 * x.clip(0, 1)).astype(np.uint8) for x in results]
    return list(zip(functions, results, strict=True))


def draw(rows: Sequence[tuple[str, Images]], path: Path, *, inches: float = 0.4, masked: bool = False) -> None:
    """Draws each row of at most eight images beside its name, twenty rows below each other.

    Args:
        rows: names and images, of volumes the central slices, or signals, which are twice as wide.
        path: the file.
        inches: width of an image.
        masked: whether the last channel is a mask; the padding is not drawn.
    """
    signals = rows[0][1].ndim == 3
    rows = displayed(rows, masked)
    height, width, inches = (24, 48, 2 * inches) if signals else (*rows[0][1].shape[1:3], inches)
    blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    number, gap = len(blocks[0]), max(1, width // 12)
    scale = inches / width
    size = len(blocks) * (COLUMNS * (width + gap) * scale + 1.8), number * (height + gap) * scale + 0.3
    figure, sheets = plots.panels(len(blocks), *size)
    for axes, block in zip(sheets, blocks, strict=True):
        (_draw_signals if signals else _draw_images)(axes, block, number, height, width, gap)
        middles = [row * (height + gap) + (height - 1) / 2 for row in range(len(block))]
        axes.set_yticks(middles, [name for name, _ in block], parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    plots.save_figure(figure, path, dpi=120, bbox_inches="tight")  # long names too


def displayed(rows: Sequence[tuple[str, Images]], masked: bool = False) -> list[tuple[str, Images]]:
    """Returns uint8 images as they are, and others scaled for display, of volumes the central slices along axis 0.

    Each channel is scaled from its range over all rows to [0, 1], images then to uint8. Padding becomes NaN.
    """
    images = [x[:, x.shape[1] // 2] if x.ndim == 5 else x for _, x in rows]
    if images[0].dtype != np.uint8 or images[0].ndim == 3:
        values = [x.astype(np.float64) for x in images]
        if masked:
            values = [np.where(x[..., -1:] > 0.5, x[..., :-1], np.nan) for x in values]
        points = np.concatenate([x.reshape(-1, x.shape[-1]) for x in values])
        low, high = np.nanmin(points, 0), np.nanmax(points, 0)
        images = [(x - low) / np.where(high > low, high - low, 1) for x in values]
        if images[0].ndim == 4:
            images = [np.rint(255 * x).astype(np.uint8) for x in images]
    return [(name, x) for (name, _), x in zip(rows, images, strict=True)]


def _draw_images(axes: Any, rows: Sequence[tuple[str, Images]], number: int, height: int, width: int, gap: int) -> None:
    channels = rows[0][1].shape[-1]
    page = np.full((number, height + gap, COLUMNS, width + gap, channels), 240, np.uint8)  # white images stand out
    for row, (_, images) in enumerate(rows):
        page[row, :height, : len(images), :width] = np.moveaxis(images, 0, 1)
    page = page.reshape(number * (height + gap), COLUMNS * (width + gap), channels)
    colours = 3 if channels >= 3 else 1
    axes.imshow(page[..., :colours], cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _draw_signals(
    axes: Any, rows: Sequence[tuple[str, Images]], number: int, height: int, width: int, gap: int
) -> None:
    """Draws one line per channel through all signals, interrupted between them by NaN."""
    points, channels = rows[0][1].shape[1:]
    for channel in range(channels):
        line = [
            (column * (width + gap) + x, row * (height + gap) + (height - 1) * (1 - y))
            for row, (_, signals) in enumerate(rows)
            for column, signal in enumerate(signals)
            for x, y in [*zip(np.linspace(0, width - 1, points), signal[:, channel], strict=True), (0, np.nan)]
        ]
        axes.plot(*zip(*line, strict=True), linewidth=0.6, color=f"C{channel % 10}")
    axes.set(xlim=(-gap, COLUMNS * (width + gap)), ylim=(number * (height + gap), -gap))


if __name__ == "__main__":
    entry.run(main, DataConfig)
