"""Table 2: accuracy against weights of all architectures, run by run, beside the paper's figures.

    python -m experiments.table2 cifar10 cifar100 stl10 --recipe paper --seeds 5 --widths A B C   # all of it: a GPU
    python -m experiments.table2 folder --data-dir DIR --recipe fast --epochs 5                   # what two cores can

Finished runs are skipped, stopped ones go on, one whose loss is no longer finite does not keep the others from theirs.
`--dry-run` prints the plan and the hours that it needs here.
"""

import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.config import DIVERGED, Architecture, DatasetName, RecipeName, TrainConfig, finished
from experiments.files import read_rows, write_rows
from experiments.styles import STYLES

Width = Literal["A", "B", "C"]

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

SHAPES: dict[str, tuple[int, int]] = {"cifar10": (50_000, 32), "cifar100": (50_000, 32), "stl10": (5_000, 96)}
"""Training images, and their side, for the plan."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid of runs, and where their lines go."""

    datasets: tyro.conf.Positional[tuple[DatasetName, ...]] = ("cifar10",)
    """As in training. Of cifar10, cifar100 and stl10 only the rows that the paper prints are run."""
    architectures: tuple[Architecture, ...] = (
        *("resnet", "mobilenet", "linear_mix", "explicit_rd", "implicit_rd", "circulant_rd"),
    )
    """Which networks."""
    widths: tuple[Width, ...] = ("A",)
    """Channels: A 32-64-128, B 48-96-192, C 32-64-128-256."""
    recipe: RecipeName = "fast"
    """As in training."""
    epochs: int | None = None
    """As in training: the recipe's when not given."""
    seed: int = 0
    """The first one."""
    seeds: int = 1
    """Networks of each kind, trained at once."""
    batch_size: int = 100
    """As in training."""
    train_images: int | None = None
    """Train on so many of the images."""
    image_size: int | None = None
    """As in training, of a folder."""
    data_dir: Path | None = None
    """Where the pictures or archives are."""
    download: bool = False
    """As in training."""
    images: str = ""
    """What a folder's pictures are, in words for the table, e.g. "JPEG re-encoded CIFAR-10 pictures"."""
    like: Literal["", "cifar10", "cifar100", "stl10"] = ""
    """The data set of the paper that a folder's pictures are, whose figures then stand beside."""
    workdir: Path = Path("runs/table2")
    """Where the runs are."""
    out: Path = Path("experiments/results/table2.jsonl")
    """One line a finished run, kept from earlier ones; the table and the plot are written beside it."""
    dry_run: bool = False
    """Print what would be run, and the hours that the missing epochs need at the speed measured now, without
    augmentation and evaluation; run nothing."""


def main(config: Config) -> int:
    """Run what is missing, one network after another, each in a process of its own.

    Returns:
        The exit status of training: 3 if the loss of any network was no longer finite, another as soon as one has it.
    """
    from experiments.recipes import RECIPES

    wanted = list(runs(config))
    if not wanted:
        raise ValueError(
            f"the paper has no figures of these networks on {', '.join(config.datasets)}; choose among "
            + ", ".join(f"{name} {'/'.join(next(iter(table.values())))}" for name, table in PAPER.items())
            + f" and {', '.join(PAPER['cifar10'])}"
        )
    if (config.images or config.like) and set(config.datasets) != {"folder"}:
        raise ValueError(
            "--images and --like are for the data set folder alone; leave them out, or the other data sets"
        )
    if config.dry_run:
        plan(config)
        return 0
    ingredients, diverged = dataclasses.asdict(RECIPES[config.recipe]), 0
    for run in wanted:
        result = finished(run, ingredients)
        if result is None:
            code = train(run)
            if code == DIVERGED:
                diverged = code
                continue
            if code:
                return code
            result = json.loads((run.directory() / "result.json").read_text())
        record(config, result)
        write(config.out)
    return diverged


def runs(config: Config) -> Iterator[TrainConfig]:
    """The grid, the paper's empty places left out."""
    from experiments.recipes import RECIPES

    epochs = RECIPES[config.recipe].epochs if config.epochs is None else config.epochs
    for dataset in config.datasets:
        for width in config.widths:
            for architecture in config.architectures:
                if dataset in PAPER and width not in PAPER[dataset].get(architecture, {}):
                    continue
                some = "" if config.batch_size == 100 else f"-batch{config.batch_size}"
                some += "" if config.train_images is None else f"-{config.train_images}images"
                some += "" if config.image_size is None else f"-{config.image_size}pixels"
                name = f"{dataset}-{architecture}-{width}-{config.recipe}-{epochs}epochs{some}"
                yield TrainConfig(
                    dataset=dataset,
                    architecture=architecture,
                    width=width,
                    recipe=config.recipe,
                    epochs=epochs,
                    seed=config.seed,
                    seeds=config.seeds,
                    batch_size=config.batch_size,
                    train_images=config.train_images,
                    image_size=config.image_size,
                    download=config.download,
                    data_dir=config.data_dir,
                    workdir=config.workdir / f"{name}-seed{config.seed}x{config.seeds}",
                )


def train(run: TrainConfig) -> int:
    """`python -m experiments.train` with the run's flags; a signal to this program reaches it.

    Returns:
        Its exit status.
    """
    default = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in dataclasses.asdict(run).items() if value != default[name]}
    dataset, flags = given.pop("dataset", run.dataset), []
    for name, value in given.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with subprocess.Popen([sys.executable, "-m", "experiments.train", dataset, *flags]) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it came to the whole process group
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def record(config: Config, result: dict[str, Any]) -> None:
    """A line for this run; the one that it has is written again where the flags tell what its pictures are."""
    rows = read_rows(config.out)
    like = config.like or (result["dataset"] if result["dataset"] in PAPER else None)
    original = "original" if result["dataset"] in PAPER else "pictures as they lie in the folder"
    new = {"images": config.images or f"{result['dataset']}, {original}", "like": like, **result}
    there = [i for i, row in enumerate(rows) if row["digest"] == new["digest"]]
    if not there:
        rows.append(new)
    elif config.images or config.like:
        rows[there[0]] = new
    write_rows(config.out, rows)


def write(out: Path) -> None:
    """The table and the plot beside the lines."""
    rows = read_rows(out)
    out.with_suffix(".md").write_text(markdown(rows, out.with_suffix(".png").name))
    draw(rows, out.with_suffix(".png"))


def markdown(rows: list[dict[str, Any]], picture: str) -> str:
    """One table for each kind of images, recipe, number of epochs and seeds; and the picture, by its file's name."""
    text = (
        "# Table 2\n\nAccuracy of the last epoch on all test images; the paper's networks had 300 epochs. Seconds are "
        "those of the clock,\nwith pauses and whatever else the machine did.\n"
    )
    for kind, group in _groups(rows).items():
        images, train_images, recipe, epochs, seed, seeds, device = kind
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
    return f"{text}\n![accuracy against weights]({picture})\n\nMade by `python -m experiments.table2`.\n"


def _groups(rows: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        kind = tuple(row[x] for x in ("images", "train_images", "recipe", "epochs", "seed", "seeds", "device"))
        groups.setdefault(kind, []).append(row)
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
    figure.savefig(path, dpi=110)


def plan(config: Config) -> None:
    """Print the runs and their hours, and the multiply-adds of all: what another device's hours can be told from."""
    from experiments.subject import epochs_done
    from lowcost import cost

    total = work = 0.0
    speeds: dict[tuple, float] = {}
    for run in runs(config):
        epochs = run.epochs or 0
        images, side = SHAPES.get(run.dataset) or _folder(run)
        if config.train_images is not None:
            images = config.train_images
        done = epochs_done(run.directory())
        kind = (run.architecture, run.width, side)
        if kind not in speeds and done < epochs:
            print(f"measuring {run.architecture} {run.width} on {side}x{side} pixels …", file=sys.stderr)
            speeds[kind] = _images_per_second(*kind, run.batch_size)
        hours = (epochs - done) * run.seeds * images / speeds[kind] / 3600 if done < epochs else 0.0
        total += hours
        forward = cost.network(run.architecture, run.width, 10, (side, side, 3)).multiply_adds
        work += 3 * forward * max(0, epochs - done) * run.seeds * images  # the way back costs two ways forth
        print(
            f"{run.dataset:8} {run.architecture:13} {run.width}  {done}/{epochs} epochs of {images:,} images, "
            f"{run.seeds} seed{'s' * (run.seeds > 1)}: {_duration(hours)}",
            flush=True,
        )
    print(
        f"{_duration(total)} in all on this device (several seeds counted as if one followed the other, without "
        f"augmentation and evaluation); {work:.1e} multiply-adds"
    )


def _duration(hours):
    return f"{hours:.1f} h" if hours >= 1 or not hours else f"{math.ceil(60 * hours)} min"


def _folder(run: TrainConfig) -> tuple[int, int]:
    from lowcost import data

    train = data.load(
        run.dataset,
        data_dir=run.data_dir,
        image_size=run.image_size,
        cache_dir=run.directory().parent / ".lowcost-cache",
    ).train
    return len(train), train.images.shape[1]


def _images_per_second(architecture: str, width: str, side: int, batch_size: int) -> float:
    """Of three training steps in a process of its own, which leaves no memory behind."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (architecture, width, side, batch_size))


def _measure(architecture: str, width: str, side: int, batch_size: int) -> float:
    from experiments import throughput
    from experiments.timing import interleave
    from lowcost.train.mesh import use_every_core

    use_every_core(batch_size)
    ours = throughput.Ours(architecture, throughput.Config(width=width, size=side, batch_size=batch_size))
    return batch_size / interleave({"train": ours.steps["train"]}, 3)["train"]


if __name__ == "__main__":
    from experiments.huge_pages import use_huge_pages

    use_huge_pages()
    try:
        sys.exit(main(tyro.cli(Config, prog="python -m experiments.table2", description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
