"""Table 2: accuracy against weights of all architectures, run by run, beside the paper's figures.

    python -m experiments.table2 cifar10 cifar100 stl10 --recipe paper --seeds 5 --widths A B C   # all of it: a GPU
    python -m experiments.table2 folder --data-dir DIR --recipe fast --epochs 5                   # what two cores can

Finished runs are skipped, stopped ones go on, one whose loss is no longer finite does not keep the others from theirs.
`--dry-run` prints the plan and the hours that it needs here.
"""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.common import entry
from experiments.common.config import Architecture, DatasetName, RecipeName, TrainConfig
from experiments.common.files import changing, write_page
from experiments.common.flags import flags, shown
from experiments.common.workdir import Result, finished
from experiments.table2_page import PAPER, draw, markdown, place
from experiments.table2_plan import plan

Width = Literal["A", "B", "C"]


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
    from experiments.common.recipes import RECIPES

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
        plan(wanted)
        return 0
    ingredients, diverged = dataclasses.asdict(RECIPES[config.recipe]), 0
    for run in wanted:
        result = finished(run, ingredients)
        if result is None:
            code = train(run)
            if code == entry.DIVERGED:
                diverged = code
                continue
            if code:
                return code
            result = Result(run.directory() / "result.json")
        record(config, result)
        write(config.out)
    return diverged


def runs(config: Config) -> Iterator[TrainConfig]:
    """The grid, the paper's empty places left out."""
    from experiments.common.recipes import RECIPES

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
    """`python -m experiments.train` with the run's flags; a signal that stops this program reaches it.

    Returns:
        Its exit status.
    """
    from lowcost.train.interruption import stop_signals

    command = [sys.executable, "-m", "experiments.train", run.dataset, *flags(run, "dataset")]
    with subprocess.Popen(command) as process:
        passed_on = [number for number in stop_signals() if number != signal.SIGINT]
        before = [signal.signal(number, lambda number, _: process.send_signal(number)) for number in passed_on]
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGUSR1)  # nothing new to a process that Ctrl-C has reached too
            process.wait()
            code = 128 + signal.SIGINT
        finally:
            for number, handler in zip(passed_on, before, strict=True):
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def record(config: Config, result: dict[str, Any]) -> None:
    """A line for this run, in place of one from before; its own is written again to tell what its pictures are."""
    told = shown(config, "datasets", "architectures", "widths", "download", "workdir", "out", "dry_run")
    like = config.like or (result["dataset"] if result["dataset"] in PAPER else None)
    stored = {"folder": "pictures as they lie in the folder", "digits": "inside scikit-learn"}
    images = config.images or f"{result['dataset']}, {stored.get(result['dataset'], 'original')}"
    new = {"images": images, "like": like, "flags": told, **result}
    with changing(config.out) as rows:
        same = [i for i, row in enumerate(rows) if row["digest"] == new["digest"]]
        older = [i for i, row in enumerate(rows) if place(row) == place(new)]
        if same and not (config.images or config.like):
            return
        if i := [*same, *older]:
            rows[i[0]] = new
        else:
            rows.append(new)


def write(out: Path) -> None:
    """Writes the table and the plot beside the lines, which no other program changes meanwhile."""
    with changing(out) as rows:
        write_page(out.with_suffix(".md"), markdown(rows, out.with_suffix(".png").name))
        draw(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    entry.run(main, Config, long=True)
