"""Classifies recorded signals: `python -m experiments.signals`, which needs `pip install '.[signals]'`.

All architectures train with one recipe on data sets of the package aeon, with their official splits. The recipe was
chosen by cross-validation inside the training splits, which `--folds` repeats. Figures that are in OUT.jsonl are not
measured again, so that several runs, each with some of the networks, fill one table.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.nn import softmax
from numpy.typing import NDArray

from experiments.common import entry, results, runs
from experiments.common.config import Architecture, TrainConfig, check_batch, check_counts, derived
from experiments.common.recipes import Recipe
from experiments.common.results import Results, Row
from lowcost import nn
from lowcost.extras import needs_extra
from lowcost.train import feed
from lowcost.train.state import count_weights

PUBLISHED = {
    "ArrowHead": (82.2, 84.0, 83.8, 85.1),
    "OSULeaf": (95.6, 96.8, 98.0, 93.4),
    "ACSF1": (89.8, 89.6, 91.6, 94.0),
    "ItalyPowerDemand": (96.9, 96.3, 96.2, 96.5),
    "GunPoint": (99.7, 99.7, 99.1, 100.0),
}
"""Test accuracy in percent of the networks in `OTHERS`."""
OTHERS = ("LITE", "FCN", "ResNet", "InceptionTime")
SETS = (*PUBLISHED, "BasicMotions", "JapaneseVowels")
TARGETS = {10_000: 92.8, 100_000: 93.7}
"""Largest number of weights → mean accuracy in percent on the sets of `PUBLISHED` that such a network must reach."""
SINGLE_TARGETS = {"JapaneseVowels": 97.0}
"""Data set → accuracy in percent that every network must reach."""
KEEPS = ("hide", "noise")
"""The changes that keep the label of every signal here; moving or scaling an electricity curve may change its label."""
RECIPE = Recipe(
    optimizer="muon",
    learning_rate=0.02,
    stencil_rate=0.3,
    schedule="one_cycle",
    weight_decay=1e-5,
    matrix_decay=0.02,
    hidden=0.1,
    jitter=0.01,
    whitening=True,
    average=0.999,
)
STEPS = 64
"""Number of optimiser steps per dispatch."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The signals, the networks, and where to write the table."""

    sets: tuple[str, ...] = SETS
    """Data sets of aeon."""
    architectures: tuple[Architecture, ...] = tuple(nn.ARCHITECTURES)
    """Steps of the networks."""
    channels: tuple[int, ...] = (12,)
    """Channels of the first of three blocks, one size of network each; each further block has twice as many."""
    steps_per_block: int = 2
    """Depth: steps in each block."""
    kernel_size: int = 3
    """Points of the stencils."""
    h: float = 1.0
    """Time step; mobilenet has none."""
    steps: int = 1200
    """Number of optimiser steps, rounded up to whole passes over the training signals."""
    batch_size: int = 8
    """Signals per optimiser step."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    seed: int = 0
    """Seed of the first network."""
    seeds: int = 5
    """Number of networks of each kind."""
    folds: int = 0
    """Cross-validate inside the training split, with this number of folds, instead of testing on the test split."""
    workdir: Path = Path("runs/signals")
    """Folder of the data sets as arrays."""
    out: Path = Path("runs/results/signals")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Trains and evaluates the networks that are not in OUT.jsonl yet, and writes the results of each at once."""
    check_counts(config, "steps", "batch_size", "seeds", "steps_per_block")
    if config.folds == 1 or config.folds < 0:
        raise ValueError(f"--folds must be 0 or at least 2, got {config.folds}; use e.g. 5")
    table = Results(config, markdown, without=("workdir", "sets", "architectures", "channels"))
    table.resume()
    table.rows = [row for row in table.rows if Recipe(**row["recipe"]) == RECIPE]  # older rows lack newer ingredients
    if table.rows:
        table.add([])  # the page of what there is
    done = [(row["set"], row["architecture"], row["channels"]) for row in table.rows]
    for channels, architecture, name in itertools.product(config.channels, config.architectures, config.sets):
        if (name, architecture, channels) not in done:
            row = measure(config, name, architecture, channels)
            table.add([row])
            print("{set:16}  {architecture:21} {weights:7,} weights  {accuracy:6.2%}".format(**row), flush=True)
    table.show()


def measure(config: Config, name: str, architecture: Architecture, channels: int) -> Row:
    """Returns the accuracy of the networks on the test split or, with folds, on the part left out by each fold."""
    begin = time.monotonic()
    parts = [train(run) for run in run_configs(config, name, architecture, channels)]
    counts, accuracies, weights = zip(*parts, strict=True)
    *mean, together = np.average(accuracies, axis=0, weights=counts).tolist()
    return {
        "set": name,
        "architecture": architecture,
        "channels": channels,
        "weights": weights[0],
        "test_signals": sum(counts),
        "accuracy": statistics.mean(mean),
        "accuracies": mean,
        "together": together,
        "recipe": dataclasses.asdict(RECIPE),
        "seconds": round(time.monotonic() - begin, 1),
        **results.provenance(),
    }


def run_configs(config: Config, name: str, architecture: Architecture, channels: int) -> list[TrainConfig]:
    """Writes a data set as arrays, and returns the runs that train on it: one, or one per fold."""
    config.workdir.mkdir(parents=True, exist_ok=True)
    wanted = []
    for i, content in enumerate(folded(config.folds, config.seed, read(name, official=not config.folds))):
        path = config.workdir / (f"{name}-{i + 1}of{config.folds}.npz" if config.folds else f"{name}.npz")
        np.savez(path, allow_pickle=False, keeps=KEEPS, **content)
        check_batch(config.batch_size, len(content["train_labels"]))
        epochs = math.ceil(config.steps / (len(content["train_labels"]) // config.batch_size))
        fields: dict[str, Any] = {"dataset": "arrays", "data_dir": path, "grid_axes": 1, "epochs": epochs}
        fields |= {"architecture": architecture, "width": tuple(channels * 2**block for block in range(3))}
        fields |= {"h": 1.0} if architecture == "mobilenet" else {}
        wanted.append(derived(config, **fields))
    return wanted


def read(name: str, *, official: bool) -> dict[str, NDArray]:
    """Returns the arrays of a data set of aeon, with the lengths of its signals if they differ.

    Args:
        name: of the data set.
        official: read the test split too.
    """
    with needs_extra("signals"):
        from aeon.datasets import load_classification
    splits = {part: load_classification(name, split=part) for part in ("train", "test")[: 1 + official]}
    lengths = {part: np.array([signal.shape[1] for signal in signals]) for part, (signals, _) in splits.items()}
    longest = max(n.max() for n in lengths.values())
    content: dict[str, NDArray] = {}
    for part, (signals, labels) in splits.items():
        padded = [np.pad(signal.T, ((0, longest - len(signal.T)), (0, 0))) for signal in signals]
        content |= {f"{part}_images": np.array(padded, np.float32), f"{part}_labels": np.array(labels, str)}
        if any(n.min() < longest for n in lengths.values()):
            content[f"{part}_lengths"] = lengths[part]
    return content


def folded(folds: int, seed: int, content: dict[str, NDArray]) -> Iterator[dict[str, NDArray]]:
    """Yields the content or, with folds, its training part once per fold, which becomes the test part; stratified."""
    if not folds:
        yield content
        return
    labels = content["train_labels"]
    order = np.random.default_rng(seed).permutation(len(labels))
    fold = np.empty(len(labels), int)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % folds
    for i in range(folds):
        rows = {"train": fold != i, "test": fold == i}
        yield {name.replace("train", part): array[rows[part]] for name, array in content.items() for part in rows}


def train(run: TrainConfig) -> tuple[int, list[float], int]:
    """Trains the networks of a run.

    Returns:
        The number of test signals, the accuracy of each network and of the mean of their probabilities, and the
        number of weights of one network.
    """
    ready = runs.prepare(run, RECIPE)
    part, state = ready.dataset.train, ready.start()
    batches = feed.feed(part.images, part.labels, ready.indices, ready.mesh, steps_max=STEPS, resident=False)
    for step in range(0, ready.steps, STEPS):
        n, following = (min(STEPS, max(0, ready.steps - start)) for start in (step, step + STEPS))
        state = ready.train_steps(state, n, *batches(step, n, following))
    test = ready.dataset.test
    logits = ready.outputs(state.variables, test.images)
    outputs = [*logits, softmax(logits, axis=-1).mean(0)]
    accuracies = [float(np.mean(output.argmax(-1) == test.labels)) for output in outputs]
    return len(test), accuracies, count_weights(state.params) // run.seeds


def markdown(rows: list[Row], name: str = "signals") -> str:
    """Returns the page: one line per network, one for the networks that differ in their seed alone, and the others."""
    seeds, sets = len(rows[0]["accuracies"]), list(dict.fromkeys(row["set"] for row in rows))
    groups = results.grouped(rows, lambda row: (row["architecture"], row["channels"]))
    lines = [line(group) for group in groups] + [line([joint(row) for row in group]) for group in groups if seeds > 1]
    for i, network in enumerate(OTHERS):
        percents = {x: PUBLISHED[x][i] for x in sets if x in PUBLISHED}
        mean = f"{statistics.mean(percents.values()):.2f}" if len(percents) == len(PUBLISHED) else ""
        lines.append({"network": network, "weights": "", "percents": percents, "mean": mean, "target": ""})
    columns: dict[str, Any] = {"network": "{network}", "weights": "{weights}"}
    columns |= {x: partial(percent, x) for x in sets} | {"mean of five": "{mean}", "targets": "{target}"}
    return results.page(rows, name, "signals", table=results.table(lines, columns), seeds=seeds)


def percent(name: str, row: Row) -> str:
    """Returns the accuracy on a data set in percent, "" if there is none."""
    return f"{row['percents'][name]:.1f}" if name in row["percents"] else ""


def joint(row: Row) -> Row:
    """Returns the row of all networks together, which average their probabilities."""
    seeds = len(row["accuracies"])
    name, weights = f"{seeds} x {row['architecture']}", seeds * row["weights"]
    return {**row, "architecture": name, "weights": weights, "accuracies": [row["together"]]}


def line(rows: list[Row]) -> Row:
    """Returns the line of one network in the table: accuracy on each data set, and whether it reaches its targets."""
    weights, mean = max(row["weights"] for row in rows), ""
    percents = {row["set"]: 100 * statistics.mean(row["accuracies"]) for row in rows}
    targets = [(percents[name], least) for name, least in SINGLE_TARGETS.items() if name in percents]
    five = [row["accuracies"] for row in rows if row["set"] in PUBLISHED]
    if len(five) == len(PUBLISHED):
        means = [100 * statistics.mean(accuracies) for accuracies in zip(*five, strict=True)]
        mean = results.spread(means, ".2f")
        targets = [(statistics.mean(means), least) for most, least in TARGETS.items() if weights <= most][:1] + targets
    target = ", ".join(f"{least} {'reached' if reached >= least else 'missed'}" for reached, least in targets)
    about = {"network": f"{rows[0]['architecture']} {rows[0]['channels']}", "weights": f"{weights:,}"}
    return {**about, "percents": percents, "mean": mean, "target": target}


if __name__ == "__main__":
    entry.run(main, Config, long=True)
