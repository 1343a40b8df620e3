"""Measures accuracy, sensitivity and certified accuracy of networks with a norm budget.

Trains the same network without a budget and with several. Finished runs are skipped, stopped ones resume.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common import datasets, entry, runs, training
from experiments.common.config import (
    Architecture,
    DatasetName,
    RecipeName,
    TrainConfig,
    Width,
    check_counts,
    derived,
    suffix,
    values,
)
from experiments.common.perturbations import sensitivities
from experiments.common.recipes import RECIPES
from experiments.common.results import Results, Row, grouped, page, provenance, spread
from lowcost.nn import certified_radii, stability_report
from lowcost.scaling import to_unit_range


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to compare, and where to write the table."""

    dataset: tyro.conf.Positional[DatasetName] = "digits"
    """Data set, as in training."""
    data_dir: Path | None = None
    """Folder of the images or archives, or the file of the arrays."""
    grid_axes: int | None = None
    """arrays: number of axes of the grid, as in training."""
    length: int | None = None
    """arrays: resample every signal to this number of points, as in training."""
    budgets: tuple[float, ...] = (300, 1000, 3000)
    """Bounds of the networks; one more has none."""
    architecture: Architecture = "implicit_rd"
    """Network, as in training."""
    width: Width | tuple[int, ...] = "A"
    """Channels of the blocks, as in training."""
    steps_per_block: int = 4
    """Steps in each block."""
    recipe: RecipeName = "fast"
    """Recipe of all runs."""
    train_images: int | None = None
    """Number of training images. None: all."""
    batch_size: int = 100
    """Images per optimiser step."""
    epochs: int = 20
    """Epochs of every run."""
    seeds: int = 3
    """Number of networks of each budget."""
    epsilon: float = 36 / 255
    """Norm of the changes of an image for which the accuracy is certified; pixels are in [0, 1]."""
    sample: int = 100
    """Number of test images whose sensitivity is measured."""
    images: str = ""
    """Description of the images, for the table."""
    workdir: Path = Path("runs/norm_budget")
    """Folder of the runs."""
    out: Path = Path("runs/results/norm_budget")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> int:
    """Trains all networks, measures them, writes the table after each, and prints it."""
    check_counts(config, "sample", "epochs", "seeds")
    if not all(0 < budget < math.inf for budget in config.budgets) or len({*config.budgets}) < len(config.budgets):
        raise ValueError(f"--budgets must be different finite numbers above 0, got {config.budgets}; correct them")
    if not 0 <= config.epsilon < math.inf:
        raise ValueError(f"--epsilon must be a finite radius of at least 0, got {config.epsilon}; increase it")
    results = Results(config, markdown, without=("dataset", "workdir"))

    def report(run: TrainConfig) -> None:
        results.add(list(measure(run, config)))

    _check_data(next(runs_of(config)))
    status = training.run_all(((run, RECIPES[config.recipe]) for run in runs_of(config)), report)
    results.show()
    return status


def _check_data(run: TrainConfig) -> None:
    """Raises ValueError for data whose networks have no certified radii, before any training."""
    dataset = datasets.load(run)
    if dataset.task != "classes":
        raise ValueError(f"the data must have one class per image, got labels for the task {dataset.task}; use others")
    if dataset.masked:
        raise ValueError("signals must have one length, got different ones; resample them with --length N")


def runs_of(config: Config) -> Iterator[TrainConfig]:
    """Yields the run without a budget, then one for each budget."""
    for budget in (None, *config.budgets):
        run = derived(config, norm_budget=budget, evaluate_every=config.epochs)
        images = "all" if run.train_images is None else run.train_images
        group = f"{run.dataset}-{run.architecture}-{run.width_name}-{run.steps_per_block}steps-{run.recipe}"
        group += f"-{run.epochs}epochs-{run.seeds}seeds-{images}images"
        group += suffix(config, "length", "batch_size")
        workdir = config.workdir / group / ("none" if budget is None else f"{budget:g}")
        yield dataclasses.replace(run, workdir=workdir)


def measure(run: TrainConfig, config: Config) -> Iterator[Row]:
    """Yields a row for each network of a finished run."""
    ready, state = runs.reopen(run.directory(), run.data_dir, to_the_end=True)
    images, labels = to_unit_range(ready.dataset.test.images), ready.dataset.test.labels
    sample = np.linspace(0, len(images) - 1, min(config.sample, len(images))).astype(int)  # a folder is sorted by class
    outputs = ready.outputs(state.chosen, ready.dataset.test.images)
    for seed, (logits, variables) in enumerate(zip(outputs, ready.of_each_seed(state.chosen), strict=True)):
        radii = certified_radii(ready.net, variables, images, labels, logits=logits)
        yield {
            **values(config, "dataset", "architecture", "width", "recipe", "epochs", "seeds", "epsilon"),
            "images": config.images or config.dataset,
            "train_images": len(ready.dataset.train),
            "test_images": len(images),
            "budget": run.norm_budget,
            "seed": run.seed + seed,
            "accuracy": float((logits.argmax(-1) == labels).mean()),
            "bound": stability_report(ready.net, variables, images.shape[1:]).lipschitz,
            "observed": float(sensitivities(ready.net, variables, jnp.asarray(images[sample])).max()),
            "certified": float((radii > config.epsilon).mean()),
            "radius": float(np.median(radii)),
            **provenance(),
        }


def markdown(rows: list[Row], name: str = "norm_budget") -> str:
    """Returns the page: one line per budget, over all of its seeds."""
    first = rows[0]
    parts = {
        "lines": map(_line, grouped(rows, lambda row: row["budget"])),
        "level": 255 * first["epsilon"],
        "networks": f"{first['seeds']} seed{'s' * (first['seeds'] > 1)}",
    }
    return page(rows, name, f"norm_budget {first['dataset']}", **parts)


def _line(networks: list[Row]) -> Row:
    return {
        "budget": "none" if networks[0]["budget"] is None else f"{networks[0]['budget']:,g}",
        "accuracy": spread([100 * row["accuracy"] for row in networks], ".1f"),
        "bound": f"{max(row['bound'] for row in networks):,.4g}",
        "observed": f"{median(row['observed'] for row in networks):.1f}",
        "ratio": f"{max(row['bound'] / row['observed'] for row in networks):,.0f}",
        "certified": f"{mean(100 * row['certified'] for row in networks):.1f}",
        "radius": f"{median(row['radius'] for row in networks):.2g}",
    }


if __name__ == "__main__":
    entry.run(main, Config, long=True)
