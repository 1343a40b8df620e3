"""Measures Table 2: accuracy against weights of all architectures, run by run, beside the paper's figures.

    python -m experiments.table2 cifar10 cifar100 stl10 --recipe paper --seeds 5 --widths A B C   # all: a GPU
    python -m experiments.table2 folder --data-dir DIR --recipe fast --epochs 5                   # two cores

Finished runs are skipped, stopped ones resume, and one that diverges does not stop the others. `--dry-run` prints the
plan and the hours that it needs on this machine.
"""

import dataclasses
import itertools
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import throughput
from experiments.common import entry, files, recipes, timing, training
from experiments.common.config import (
    Architecture,
    DatasetName,
    RecipeName,
    TrainConfig,
    Width,
    check_counts,
    derived,
    flags,
    shown,
    suffix,
)
from experiments.common.datasets import load
from experiments.common.table2_page import ARCHITECTURES, WIDTHS, draw, markdown, paper, place
from lowcost.data.catalogue import ENTRIES
from lowcost.deploy.loading import Result
from lowcost.nn import network, network_cost
from lowcost.train import interruption, mesh
from lowcost.train.metrics_log import epoch_rows

PASSES = 3
"""A training step costs three forward passes: the backward pass takes two."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid of runs, and where their rows go."""

    datasets: tyro.conf.Positional[tuple[DatasetName, ...]] = ("cifar10",)
    """Data sets, as in training. Of cifar10, cifar100 and stl10 only the rows that the paper prints are run."""
    architectures: tuple[Architecture, ...] = ARCHITECTURES
    """Networks."""
    widths: tuple[Width, ...] = ("A",)
    """Channels of the blocks. A: 32, 64, 128. B: 48, 96, 192. C: 32, 64, 128, 256."""
    recipe: RecipeName = "fast"
    """Recipe, as in training."""
    epochs: int | None = None
    """Epochs of each run. None: those of the recipe."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Number of networks of each kind, trained at once."""
    batch_size: int = 100
    """Images per optimiser step."""
    kernel_size: int = 3
    """Points of the stencils per axis; 3 in the paper."""
    train_images: int | None = None
    """Number of training images. None: all."""
    image_size: int | None = None
    """folder: resize the images to squares of this side."""
    grid_axes: int | None = None
    """arrays: number of axes of the grid, as in training."""
    length: int | None = None
    """arrays: resample every signal to this number of points, as in training."""
    data_dir: Path | None = None
    """Folder of the images or archives."""
    download: bool = False
    """Download archives that are not found."""
    images: str = ""
    """folder, arrays: description of the images for the table, e.g. "JPEG re-encoded CIFAR-10"."""
    like: Literal["", "cifar10", "cifar100", "stl10"] = ""
    """folder, arrays: the paper's data set that the images are from; its figures are shown beside the results."""
    workdir: Path = Path("runs/table2")
    """Folder of the runs."""
    out: Path = Path("runs/results/table2")
    """Writes OUT.jsonl, one line per finished run in addition to those that it holds, OUT.md and OUT.png."""
    dry_run: bool = False
    """Only print the runs, and the hours that the missing epochs need at the speed measured now."""


def main(config: Config) -> int:
    """Runs what is missing, one network after another, each in a process of its own; see `training.run_all`."""
    wanted = list(runs(config))
    if not wanted:
        choices = [*(f"{name} {'/'.join(widths)}" for name, widths in WIDTHS.items()), *ARCHITECTURES]
        problem = f"the paper has no figures of these networks on {', '.join(config.datasets)}"
        raise ValueError(f"{problem}; choose among {', '.join(choices)}")
    if (config.images or config.like) and config.datasets not in (("folder",), ("arrays",)):
        raise ValueError("--images and --like are for folder or arrays alone; omit them, or the other data sets")
    check_counts(config, "epochs", "batch_size", "seeds", "train_images")
    if config.dry_run:
        plan(wanted)
        return 0

    def report(run: TrainConfig) -> None:
        record(config, Result(run.directory() / "result.json"))
        write(config.out)

    return training.run_all(((run, recipes.RECIPES[run.recipe]) for run in wanted), report, lambda run, _: train(run))


def runs(config: Config) -> Iterator[TrainConfig]:
    """Yields the runs of the grid, without the cells that the paper leaves empty."""
    epochs = recipes.RECIPES[config.recipe].epochs if config.epochs is None else config.epochs
    some = suffix(config, "batch_size", "train_images", "kernel_size", "image_size", "length")
    end = f"{config.recipe}-{epochs}epochs{some}-seed{config.seed}x{config.seeds}"
    for dataset, width, architecture in itertools.product(config.datasets, config.widths, config.architectures):
        if dataset not in WIDTHS or paper(dataset, architecture, width):
            cell: dict[str, Any] = {"dataset": dataset, "width": width, "architecture": architecture}
            cell |= {"data_dir": None} if dataset == "digits" else {}  # which needs none
            cell |= {} if dataset in ENTRIES else {"download": False}
            workdir = config.workdir / f"{dataset}-{architecture}-{width}-{end}"
            yield derived(config, **cell, epochs=epochs, workdir=workdir)


def train(run: TrainConfig) -> int:
    """Runs `python -m experiments.train` with the run's flags and passes stop signals on; returns its exit status."""
    command = [sys.executable, "-m", "experiments.train", run.dataset, *flags(run, "dataset")]
    with subprocess.Popen(command) as process:
        passed_on = [number for number in interruption.stop_signals() if number != signal.SIGINT]
        before = [signal.signal(number, lambda number, _: process.send_signal(number)) for number in passed_on]
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGUSR1)  # ignored by a process that Ctrl-C has reached too
            process.wait()
            code = 128 + signal.SIGINT
        finally:
            for number, handler in zip(passed_on, before, strict=True):
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def record(config: Config, result: dict[str, Any]) -> None:
    """Adds the row of a run, or replaces an older one; --images and --like change a row that is there already."""
    command = shown(config, "datasets", "architectures", "widths", "download", "workdir", "out", "dry_run")
    like = config.like or (result["dataset"] if result["dataset"] in WIDTHS else None)
    origin = {"folder": "images of the user", "arrays": "arrays of the user", "digits": "inside scikit-learn"}
    images = config.images or f"{result['dataset']}, {origin.get(result['dataset'], 'original')}"
    new = {"images": images, "like": like, "flags": command, "kernel_size": config.kernel_size, **result}
    with files.changing(config.out.with_suffix(".jsonl")) as rows:
        same = [i for i, row in enumerate(rows) if row["digest"] == new["digest"]]
        older = [i for i, row in enumerate(rows) if place(row) == place(new)]
        if same and not (config.images or config.like):
            return
        i = [*same, *older, len(rows)][0]
        rows[i : i + 1] = [new]  # in place of an older row, or after all


def write(out: Path) -> None:
    """Writes the page and the plot of the rows, which stay locked until both are written."""
    with files.changing(out.with_suffix(".jsonl")) as rows:
        files.write_page(out.with_suffix(".md"), markdown(rows, out.name))
        draw(rows, out.with_suffix(".png"))


def plan(wanted: Sequence[TrainConfig]) -> None:
    """Prints the runs with the hours that they need, and the sums.

    Args:
        wanted: configurations with the number of epochs.

    Raises:
        ValueError: the images of a data set are not square.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for run in wanted:
        if run.dataset not in shapes:
            archive = ENTRIES.get(run.dataset)
            shape = (archive.train, *archive.image_shape) if archive else load(run).train.images.shape
            if len(shape) != 4 or shape[1] != shape[2]:
                got = f"{run.dataset} with {'x'.join(map(str, shape[1:-1]))} points"
                raise ValueError(f"--dry-run is for square images, got {got}; use the --dry-run of experiments.train")
            shapes[run.dataset] = shape
    total = work = 0.0
    speeds: dict[tuple, float] = {}
    for run in wanted:
        epochs = run.epochs or 0
        number, side, *_ = shapes[run.dataset]
        images = run.train_images or number
        done = len(epoch_rows(run.directory() / "metrics.jsonl"))
        kind = (run.architecture, run.width, run.kernel_size, side)
        if kind not in speeds and done < epochs:
            print(f"measuring {run.architecture} {run.width} on {side}x{side} pixels …", file=sys.stderr)
            speeds[kind] = entry.in_a_process(_images_per_second, *kind, run.batch_size)
        passes = max(0, epochs - done) * run.seeds * images
        hours = passes / speeds[kind] / 3600 if passes else 0.0
        total += hours
        net = network(run.architecture, run.width, 10, kernel_size=run.kernel_size or 3)
        work += PASSES * network_cost(net, (side, side, 3)).multiply_adds * passes
        about = f"{run.dataset:8} {run.architecture:13} {run.width}  {done}/{epochs} epochs of {images:,} images"
        print(f"{about}, {run.seeds} seed{'s' * (run.seeds > 1)}: {_duration(hours)}", flush=True)
    assumed = "without augmentation and evaluation, and with the seeds one after another"
    print(f"{_duration(total)} in all on this device, {assumed}; {work:.1e} multiply-adds")


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 or not hours else f"{math.ceil(60 * hours)} min"


def _images_per_second(architecture: Architecture, width: Width, kernel_size: int, side: int, batch_size: int) -> float:
    """Returns the speed of three training steps."""
    mesh.use_every_core(batch_size)
    config = throughput.Config(width=width, size=side, batch_size=batch_size)
    ours = throughput.Ours(architecture, config, kernel_size)
    return batch_size / timing.interleave({"train": ours.steps["train"]}, 3)["train"]


if __name__ == "__main__":
    entry.run(main, Config, long=True)
