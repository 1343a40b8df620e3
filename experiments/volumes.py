"""Classifies tissue in a magnetic resonance image of the brain: fully coupled and low-cost 3-D networks of equal width.

The image is the template MNI152, an average of 152 brains, which comes with nilearn: `pip install '.[volumes]'`. The
architectures that OUT.jsonl holds already are not trained again; the times of all are always measured.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.common import entry, timing
from experiments.common.brain import CLASSES, perturbed, slabs, template
from experiments.common.config import Architecture, check_batch, check_counts, values
from experiments.common.recipes import Recipe
from experiments.common.results import Results, Row, accuracy, page, provenance
from lowcost import data, nn
from lowcost.train.loop import evaluate_all
from lowcost.train.mesh import data_mesh, replicated, shard_batch, use_every_core
from lowcost.train.state import count_weights, create_state
from lowcost.train.step import Draw, make_eval_step, make_train_step

SIDE = 8
"""Voxels per side of a patch."""
MAJORITY = 0.6
"""Smallest share of a patch that its class must have."""
PARTS: tuple[Literal["accuracy"], Literal["time"]] = ("accuracy", "time")
"""What is measured."""
ROUNDS = 7
"""Rounds in which the training steps alternate."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The networks, the patches, and where to write the figures."""

    architectures: tuple[Architecture, ...] = get_args(Architecture)
    """The networks, in addition to those that OUT.jsonl holds."""
    parts: tuple[Literal["accuracy", "time"], ...] = PARTS
    """What to measure; rows of the other part stay in OUT.jsonl. The time needs a machine without other work."""
    width: tuple[int, ...] = (16, 32)
    """Channels of the blocks."""
    steps_per_block: int = 2
    """Steps in each block."""
    patches: int = 700
    """Training patches of each class."""
    epochs: int = 16
    """Passes over the training patches."""
    learning_rate: float = 0.003
    """The largest one, of one cycle of Adam."""
    batch_size: int = 60
    """Patches per optimiser step."""
    seeds: int = 5
    """Number of networks of each architecture, with the seeds 0, 1, …"""
    validate: bool = False
    """Leave out one training slab and test on it, to choose a recipe without the test slabs."""
    out: Path = Path("runs/results/volumes")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Trains and times the networks, writes both files after each part of the work, prints the page."""
    check_counts(config, "patches", "epochs", "batch_size", "seeds", "steps_per_block")
    check_batch(config.batch_size, config.patches * len(CLASSES))
    use_every_core(config.batch_size)
    mesh = data_mesh(config.batch_size)
    results = Results(config, markdown, without=("parts", "architectures"))
    results.resume()
    results.rows = [row for row in results.rows if row["part"] == "accuracy" or "time" not in config.parts]
    dataset = patches(config)
    jax.set_mesh(mesh)
    for architecture in config.architectures if "accuracy" in config.parts else ():
        if (architecture, "accuracy") not in [(row["architecture"], row["part"]) for row in results.rows]:
            results.add([train(config, architecture, dataset, mesh)], complete=not config.validate)
            print(f"{architecture}: {accuracy(results.rows[-1])}", flush=True)
    if "time" in config.parts:  # of all networks of the table, because their rounds alternate
        trained = [row["architecture"] for row in results.rows]
        every = dataclasses.replace(config, architectures=tuple(dict.fromkeys([*trained, *config.architectures])))
        results.add(measure(every, dataset, mesh), complete=not config.validate)
    results.show()


def patches(config: Config) -> data.Dataset:
    """Returns the training patches, and the test patches or, to choose a recipe, those of the validation slab."""
    image, maps, brain = template()
    shares = np.stack([_means(x) for x in maps])
    clear = (shares.max(0) >= MAJORITY) & (_means(brain) > 1 - 1e-6)
    labels = np.where(clear, shares.argmax(0), -1)
    kept, tested = slabs(config.validate)
    train = sample(0, image, labels, kept, config.patches)
    test = sample(1, image, labels, tested, -(-config.patches // 2))
    return data.Dataset("volumes", train, test, CLASSES, keeps=("flip",), origin="MNI152 in nilearn")


def _means(x: np.ndarray) -> np.ndarray:
    """Returns the mean of every patch, by the index of its first voxel."""
    for axis in range(3):
        x = np.lib.stride_tricks.sliding_window_view(x, SIDE, axis).mean(-1, dtype=np.float64)
    return x


def sample(
    seed: int, image: np.ndarray, labels: np.ndarray, slabs: Sequence[tuple[int, int]], number: int
) -> data.Split:
    """Returns `number` patches of each class that lie within slabs, each with its own gain, offset and noise.

    Args:
        seed: of the random numbers.
        image: [X, Y, Z]; the slabs divide Y.
        labels: the class of each patch by its first voxel, or -1, [X - 7, Y - 7, Z - 7].
        slabs: the first voxel of each, and the one after its last.
        number: patches of each class.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    inside = np.isin(np.arange(labels.shape[1]), [y for low, high in slabs for y in range(low, high - SIDE + 1)])
    places = [np.argwhere((labels == label) & inside[:, None]) for label in range(len(CLASSES))]
    starts = np.concatenate([rng.choice(some, number, replace=False) for some in places])
    found = np.lib.stride_tricks.sliding_window_view(image, (SIDE,) * 3)[tuple(starts.T)][..., None]
    return data.Split(perturbed(rng, found), np.repeat(np.arange(len(CLASSES), dtype=np.int32), number))


def _network(config: Config, architecture: Architecture, dataset: data.Dataset, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Returns a network, jitted random key → state before training, and its jitted training step."""
    steps = len(dataset.train) // config.batch_size
    optimizer = Recipe(learning_rate=config.learning_rate, schedule="one_cycle").transformation(config.epochs, steps)
    options: dict[str, Any] = {"steps_per_block": config.steps_per_block, "moments": dataset.moments}
    net = nn.network(architecture, config.width, len(CLASSES), **options)
    create = partial(create_state, net, optimizer, image_shape=dataset.image_shape)
    jit = partial(jax.jit, out_shardings=replicated(mesh))
    return net, jit(create), jit(make_train_step(net, optimizer, _flips, steps))


def _flips(images: jax.Array, draw: Draw) -> jax.Array:
    """Returns the images, each flipped at random along each axis."""
    for axis, key in zip((1, 2, 3), jax.random.split(draw.step, 3), strict=True):
        images = data.random_flip(key, images.swapaxes(axis, 3)).swapaxes(axis, 3)
    return images


def train(config: Config, architecture: Architecture, dataset: data.Dataset, mesh: Mesh) -> Row:
    """Returns the accuracy of all networks of an architecture, which are trained one after another.

    All at once (`jax.vmap`) they would take several times as long on a CPU.
    """
    started, (net, create, step) = time.monotonic(), _network(config, architecture, dataset, mesh)
    evaluate, test = jax.jit(make_eval_step(net), out_shardings=replicated(mesh)), dataset.test
    tests, fitted, options = [], [], values(config, "batch_size")
    for seed in range(config.seeds):
        state = create(jax.random.key(seed))
        for i in range(config.epochs * (len(dataset.train) // config.batch_size)):
            state = jax.block_until_ready(step(state, *_batch(config, dataset, mesh, seed, i)))
        found: Any = evaluate_all(evaluate, state.variables, test.images, test.labels, mesh=mesh, **options)
        tests.append(float(found["accuracy"]))
        fitted.append(float(state.metrics["correct"] / state.metrics["count"]))
    return {
        **_row(config, "accuracy", architecture, dataset),
        "weights": count_weights(state.params),
        "test_accuracy": statistics.mean(tests),
        "test_accuracy_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "test_accuracies": tests,
        "train_accuracy": statistics.mean(fitted),
        "train_seconds": round(time.monotonic() - started, 1),
    }


def _batch(config: Config, dataset: data.Dataset, mesh: Mesh, seed: int, step: int) -> list[jax.Array]:
    rows = data.batch_indices(seed, step, len(dataset.train), config.batch_size).astype(np.int32)
    return shard_batch(mesh, dataset.train.images[rows], dataset.train.labels[rows], rows)


def measure(config: Config, dataset: data.Dataset, mesh: Mesh) -> list[Row]:
    """Returns the seconds of a training step of one network of each architecture, and what its compiler reports."""
    batch = _batch(config, dataset, mesh, 0, 0)
    steps: dict[str, timing.Step] = {}
    reports: list[Row] = []
    for architecture in config.architectures:
        _, create, step = _network(config, architecture, dataset, mesh)
        state, started = create(jax.random.key(0)), time.perf_counter()
        program = step.lower(state, *batch).compile()
        row = {**_row(config, "time", architecture, dataset), "compile_seconds": time.perf_counter() - started}
        temporary = jax.device_count() * program.memory_analysis().temp_size_in_bytes / 2**20
        steps[architecture] = partial(program, state, *batch)
        reports.append({**row, "temporary_mib": temporary})
    medians = timing.interleave(steps, ROUNDS)
    return [{**row, "step_milliseconds": 1000 * medians[row["architecture"]]} for row in reports]


def _row(config: Config, part: str, architecture: Architecture, dataset: data.Dataset) -> Row:
    """Returns what every row holds."""
    names = ("steps_per_block", "epochs", "learning_rate", "batch_size", "seeds", "validate")
    about = {"part": part, "architecture": architecture, "width": ", ".join(map(str, config.width)), "rounds": ROUNDS}
    about |= {f"{name}_patches": len(split) for name, split in dataset.splits.items()}
    return {**about, **values(config, *names), "digest": dataset.digest, **provenance()}


def markdown(rows: list[Row], name: str = "volumes") -> str:
    """Returns the page; `name` is that of its files."""
    names = ("weights", "train_accuracy", "test_accuracy", "step_milliseconds", "compile_seconds", "temporary_mib")
    networks: dict[str, Row] = {}
    for row in rows:
        networks.setdefault(row["architecture"], dict.fromkeys(names)).update(row)
    base = networks.get("resnet", {})
    for row in networks.values():
        for figure in ("weights", "step_milliseconds"):
            row[f"{figure}_ratio"] = row[figure] / base[figure] if row[figure] and base.get(figure) else None
        row["accuracy"] = row["test_accuracy"] and accuracy(row)
    devices = {part: ", ".join(sorted({row["device"] for row in rows if row["part"] == part})) for part in PARTS}
    on = {"trained_on": devices["accuracy"] or "none yet", "timed_on": devices["time"] or "none yet"}
    return page(rows, name, "volumes", networks=list(networks.values()), **on)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
