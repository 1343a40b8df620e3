"""Measures up to which depth and step size the features of explicit and implicit networks stay bounded (Section 3.2.2).

Measures the features of each step relative to those after the opening, at initialisation and after training on the
handwritten digits, while the time step is changed afterwards.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.common import entry, plots, recipes, runs, training
from experiments.common.config import TrainConfig, check_counts, derived, suffix, values
from experiments.common.perturbations import Variables, captured, with_time_step
from experiments.common.results import Results, Row, page, provenance
from lowcost.nn import Network, stability_report
from lowcost.scaling import to_unit_range

LIMIT = 1e3
"""Features that grow by more than this factor count as unbounded."""
STEP_SIZES = tuple(round(10 ** (i / 4 - 1), 3) for i in range(13))
"""Values of h; 1 is the one of training."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The networks to train and to measure, and where to write the figures."""

    steps_per_block: tuple[int, ...] = (4, 16, 64)
    """Steps in each block; training 64 takes 14 GiB of memory."""
    epochs: int = 5
    """Epochs of training, recipe paper."""
    batch_size: int = 100
    """Images per optimiser step."""
    images: int = 64
    """Number of images whose features are measured."""
    seed: int = 0
    """Seed of weights and training."""
    workdir: Path = Path("runs/stability")
    """Folder of the trained networks."""
    out: Path = Path("runs/results/stability")
    """Writes OUT.md, OUT.jsonl and OUT.png."""


def main(config: Config) -> int:
    """Trains what is not trained yet, measures, writes the three files, prints the table; see `training.run_all`."""
    check_counts(config, "images", "epochs")
    results = Results(config, markdown, draw, without=("workdir",))

    def report(run: TrainConfig) -> None:
        results.add(measure(run, STEP_SIZES, config.images))

    status = training.run_all(((run, recipes.RECIPES["paper"]) for run in runs_of(config)), report)
    results.show()
    return status


def runs_of(config: Config) -> Iterator[TrainConfig]:
    """Yields an explicit and an implicit network of each depth."""
    for steps, architecture in itertools.product(config.steps_per_block, ("explicit_rd", "implicit_rd")):
        workdir = config.workdir / f"{architecture}-{steps}steps-{config.epochs}epochs-seed{config.seed}"
        workdir = workdir.with_name(workdir.name + suffix(config, "batch_size"))
        yield derived(config, architecture=architecture, steps_per_block=steps, workdir=workdir)


def measure(run: TrainConfig, step_sizes: Sequence[float], images: int) -> Iterator[Row]:
    """Yields the growth of the features at each h: a row with the initial weights, two with the trained ones.

    Args:
        run: a finished run.
        step_sizes: values of h.
        images: number of images.
    """
    ready, state = runs.reopen(run.directory(), run.data_dir)
    grow = jax.jit(partial(growth, ready.net), static_argnames="by_batch")
    sample = to_unit_range(ready.dataset.train.images[:images])
    about = values(run, "steps_per_block", "architecture", "epochs", "seed") | {"images": len(sample), **provenance()}
    for weights, statistics, variables in (
        ("initial", "of the batch", ready.initial_state().variables),
        ("trained", "of the batch", state.variables),
        ("trained", "of training", state.variables),
    ):
        report = stability_report(ready.net, variables, sample.shape[1:])
        grown = [float(grow(h, variables, sample, by_batch=statistics == "of the batch")) for h in step_sizes]
        yield {
            **about,
            "weights": weights,
            "statistics": statistics,
            "stiffness": max(layer.stiffness for layer in report.layers if layer.stiffness is not None),
            "h": list(step_sizes),
            "growth": [g if math.isfinite(g) else None for g in grown],
        }


def growth(net: Network, h: float | jax.Array, variables: Variables, images: jax.Array, *, by_batch: bool) -> jax.Array:
    """Returns the root mean square of the features, largest over all steps, over that after the opening; ∞ for NaN.

    Args:
        net: the network.
        h: time step, which replaces the network's own.
        variables: the network's weights and statistics.
        images: [B, *grid, C] in [0, 1].
        by_batch: normalise by the statistics of these images, as in training.
    """
    features = captured(with_time_step(net, h), variables, jnp.asarray(images, jnp.float32), train=by_batch)
    sizes = {name: jnp.sqrt(jnp.mean(y**2)) for name, y in features.items()}
    ratio = jnp.max(jnp.stack([size for name, size in sizes.items() if "_step" in name])) / sizes["opening"]
    return jnp.where(jnp.isnan(ratio), jnp.inf, ratio)


def bounded_up_to(row: Row) -> float | None:
    """Returns the largest h before the first one at which the features exceed the limit; None if there is none."""
    pairs = zip(row["h"], row["growth"], strict=True)
    bounded = itertools.takewhile(lambda pair: pair[1] is not None and pair[1] <= LIMIT, pairs)
    return max((h for h, _ in bounded), default=None)


def markdown(rows: list[Row], name: str = "stability") -> str:
    """Returns the page; `name` is that of its files."""
    sizes = rows[0]["h"]

    def cells(row: Row) -> Row:
        largest, growth = bounded_up_to(row), dict(zip(sizes, row["growth"], strict=True))
        bounded = "none" if largest is None else f"{largest:g}" + (" (all)" if largest == sizes[-1] else "")
        at_1, at_last = ("overflow" if growth[h] is None else f"{growth[h]:.3g}" for h in (1.0, sizes[-1]))
        return {**row, "bounded": bounded, "at_1": at_1, "at_last": at_last}

    about = {"first": sizes[0], "last": sizes[-1], "count": len(sizes), "limit": LIMIT, "networks": map(cells, rows)}
    return page(rows, name, "stability", **about)


def draw(rows: list[Row], path: Path) -> None:
    """Draws growth against h, one panel per depth; what overflows float32 leaves the panel at its top."""
    figure, axes = plots.panels_of_depths(rows, 4.6, xlabel="h")
    top = 1e8
    styles = {("initial", "of the batch"): "--", ("trained", "of the batch"): "-", ("trained", "of training"): ":"}
    for row in rows:
        growth = [min(math.inf if g is None else g, 10 * top) for g in row["growth"]]
        color, line = plots.STYLES[row["architecture"]]["color"], styles[row["weights"], row["statistics"]]
        label = "{architecture}, {weights}, statistics {statistics}".format(**row)
        axes[row["steps_per_block"]].loglog(row["h"], growth, line, color=color, label=label)
    for panel in axes.values():
        panel.set(ylim=(0.5, top))
    figure.supylabel("largest features of any step, relative to the opening's")
    plots.finish(figure, path, ncols=2)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
