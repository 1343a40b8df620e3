"""Measures how far networks see: `python -m experiments.reach` trains them on tasks with a stated distance.

In each task the class of a point depends on a mark at the distance d, and on nothing nearer. All networks have the same
width and depth. Rows that OUT.jsonl holds already are not measured again.
"""

import dataclasses
import itertools
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import entry, plots
from experiments.common.config import Architecture, check_batch, check_counts, values
from experiments.common.recipes import Recipe
from experiments.common.results import Results, Row, grouped, page, provenance, table
from lowcost import nn
from lowcost.analysis import green_radius
from lowcost.data import IGNORED, Split, batch_indices
from lowcost.train.losses import pixel_cross_entropy, pixel_figures
from lowcost.train.state import count_weights, create_state
from lowcost.train.step import make_train_step

Task = Literal["rings", "bars", "pulses"]
SIDE, LENGTH = 32, 64
"""Points per axis of the images, and of the signals."""
NETWORKS: tuple[tuple[Architecture, bool], ...] = (
    ("implicit_rd", True),
    ("implicit_rd", False),
    ("explicit_rd", False),
    ("circulant_rd", False),
    ("mobilenet", False),
    ("resnet", False),
)
"""The architectures, and whether their steps start with the reach of the configuration."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The tasks, the networks, and where to write the figures."""

    tasks: tuple[Task, ...] = get_args(Task)
    """rings: each pixel of a ring has the class of the dot in its centre, d pixels away.
    bars: the last pixel of each of three bars has the class of its first pixel, d pixels away.
    pulses: signals, in which each mark has the class of the pulse d points before it."""
    distances: tuple[int, ...] = (5, 9, 13)
    """Values of d in pixels, at least 1 and below half of the grid: 16, or 32 for pulses."""
    reach: float = 8.0
    """Reach of the implicit steps before training, in pixels."""
    channels: int = 16
    """Channels of the only block."""
    steps_per_block: int = 2
    """Depth: number of steps."""
    examples: int = 4096
    """Training images; an eighth of this number are test images."""
    epochs: int = 3
    """Passes over the training images."""
    learning_rate: float = 0.003
    """The largest one, of one cycle of Adam."""
    batch_size: int = 32
    """Images per optimiser step."""
    seeds: int = 3
    """Number of networks of each kind, with the seeds 0, 1, …"""
    out: Path = Path("runs/results/reach")
    """Writes OUT.md, OUT.jsonl and OUT.png."""


def main(config: Config) -> None:
    """Trains the networks, writes the three files after each of them, prints the tables."""
    check_counts(config, "channels", "steps_per_block", "examples", "epochs", "batch_size", "seeds")
    check_batch(config.batch_size, config.examples)
    half = min(LENGTH if task == "pulses" else SIDE for task in config.tasks) // 2
    if not config.distances or not all(1 <= d < half for d in config.distances):
        raise ValueError(f"--distances must be from 1 to {half - 1} for these tasks, got {config.distances or 'none'}")
    if not 0 < config.reach < math.inf:
        raise ValueError(f"--reach must be finite and above 0, got {config.reach}; e.g. 8")
    results = Results(config, markdown, draw, without=("tasks", "distances"))
    results.resume()
    measured = {(row["task"], row["distance"], label(row)) for row in results.rows}
    tasks, distances = dict.fromkeys(config.tasks), dict.fromkeys(config.distances)
    for task, distance, (architecture, reaching) in itertools.product(tasks, distances, NETWORKS):
        reach = config.reach if reaching else 0.0
        about = {"task": task, "distance": distance, "architecture": architecture, "reach": reach}
        if (task, distance, label(about)) not in measured:
            results.add([about | measure(config, task, distance, architecture, reach)])
            print("{task}, d = {distance}: {0} {accuracy:.2%}".format(label(about), **results.rows[-1]), flush=True)
    results.show()


def examples(task: Task, distance: int, number: int, seed: int) -> Split:
    """Returns images whose marks are 255 in one channel each, and the labels of the points that have one."""
    rng = np.random.Generator(np.random.Philox(seed))
    grid = (LENGTH,) if task == "pulses" else (SIDE, SIDE)
    images, labels = np.zeros((number, *grid, 3), np.uint8), np.full((number, *grid), IGNORED, np.uint8)
    draw_one = {"rings": _ring, "bars": _bars, "pulses": _pulses}[task]
    for image, points in zip(images, labels, strict=True):
        draw_one(rng, distance, image, points)
    return Split(images, labels)


def _ring(rng: np.random.Generator, d: int, image: np.ndarray, labels: np.ndarray) -> None:
    """Draws a ring of radius d, and a dot in its centre in the channel of its class."""
    kind, offsets = rng.integers(2), np.indices((SIDE, SIDE)) - SIDE // 2
    radius = np.roll(np.hypot(*offsets), rng.integers(SIDE, size=2), (0, 1))
    ring = np.abs(radius - d) < 0.5
    image[radius == 0, kind] = 255
    image[ring, 2] = 255
    labels[ring] = kind


def _bars(rng: np.random.Generator, d: int, image: np.ndarray, labels: np.ndarray) -> None:
    """Draws three bars in one direction, forwards or backwards, each with its first pixel also in another channel."""
    if rng.integers(2):
        image, labels = image.swapaxes(0, 1), labels.swapaxes(0, 1)
    for row in 3 * rng.permutation(SIDE // 3)[:3] + 1:
        kind, columns = rng.integers(2), (rng.integers(SIDE) + rng.choice((-1, 1)) * np.arange(d + 1)) % SIDE
        image[row, columns, 2] = 255
        image[row, columns[0], kind] = 255
        labels[row, columns[-1]] = kind


def _pulses(rng: np.random.Generator, d: int, image: np.ndarray, labels: np.ndarray) -> None:
    """Draws two pulses, each in the channel of its class, and a mark d points after each, at different points."""
    first, *others = rng.permutation(LENGTH)
    second = next(x for x in others if (x - first) % LENGTH not in (d, LENGTH - d))
    for place in (first, second):
        kind, mark = rng.integers(2), (place + d) % LENGTH
        image[place, kind] = 255
        image[mark, 2] = 255
        labels[mark] = kind


def measure(config: Config, task: Task, distance: int, architecture: Architecture, reach: float) -> Row:
    """Returns the accuracy of the networks that differ in their seed, and how far they see after training."""
    begin, batch = time.monotonic(), config.batch_size
    sizes = (config.examples, max(1, config.examples // 8))
    train, test = (examples(task, distance, n, seed) for seed, n in enumerate(sizes))
    options: dict[str, Any] = {"steps_per_block": config.steps_per_block, "reach": reach, "head": "pixels"}
    net, steps = nn.network(architecture, (config.channels,), 2, **options), len(train) // batch
    optimizer = Recipe(learning_rate=config.learning_rate, schedule="one_cycle").transformation(config.epochs, steps)
    step = make_train_step(net, optimizer, lambda images, draw: images, steps, loss=pixel_cross_entropy)
    create = jax.jit(
        partial(create_state, net, optimizer, image_shape=train.images.shape[1:], figures=pixel_figures(2))
    )
    step = jax.jit(step, donate_argnums=0)
    found = []
    for seed in range(config.seeds):
        state = create(jax.random.key(seed))
        for i in range(config.epochs * steps):
            rows = batch_indices(seed, i, len(train), batch).astype(np.int32)
            state = step(state, train.images[rows], train.labels[rows], rows)
        found.append(sight(net, state.variables, test))
    means = {name: statistics.mean(figure[name] for figure in found) for name in found[0]}
    return {
        **means,
        "accuracies": [figure["accuracy"] for figure in found],
        "weights": count_weights(state.params),
        **values(config, "channels", "steps_per_block", "examples", "epochs", "batch_size", "learning_rate", "seeds"),
        "seconds": round(time.monotonic() - begin, 1),
        **provenance(),
    }


def sight(net: nn.Network, variables: Any, test: Split) -> dict[str, float]:
    """Returns the accuracy at the points with a label, and radii in pixels.

    "sees" is √(Σ |x|² g_x² / Σ g_x²) with g_x the derivative of the difference of a labelled point's two logits with
    respect to the image at the offset x. "green" is the mean Green's radius of the implicit steps.
    """
    images, known = jnp.asarray(test.images / 255, jnp.float32), test.labels != IGNORED
    apply = jax.jit(partial(net.apply, variables))
    accuracy = np.mean(np.argmax(apply(images), axis=-1)[known] == test.labels[known])
    grid = images.shape[1:-1]

    def squares(image: jax.Array, point: jax.Array) -> jax.Array:
        centred = jnp.roll(image, jnp.array(grid) // 2 - point, range(len(grid)))  # the grid is periodic
        middle = tuple(n // 2 for n in grid)
        g = jax.grad(lambda y: jnp.diff(net.apply(variables, y[None])[0][middle])[0])(centred)
        return jnp.sum(g**2, axis=-1)

    points = np.stack([np.argwhere(one)[0] for one in known[:64]])
    g = np.sum(jax.jit(jax.vmap(squares))(images[:64], points), axis=0)
    offsets = [x - n // 2 for x, n in zip(np.indices(grid), grid, strict=True)]
    found = {"accuracy": float(accuracy), "sees": float(np.sqrt((sum(x**2 for x in offsets) * g).sum() / g.sum()))}
    steps = [x.module for x in nn.bound_layers(net, variables, images.shape[1:]) if hasattr(x.module, "reach")]
    radii = [green_radius(x.get_variable("params", "stencil"), grid, x.h) for x in steps]
    return found | ({"green": float(np.mean(radii))} if radii else {})


def label(row: Row) -> str:
    """Returns the name of a network."""
    return f"{row['architecture']}, reach {row['reach']:g}" if row["reach"] else row["architecture"]


def markdown(rows: list[Row], name: str = "reach") -> str:
    """Returns the page: a table per task, one line per network."""
    tasks = grouped(rows, lambda row: row["task"])
    tables = [f"## {found[0]['task'].capitalize()}\n\n{_table(found)}" for found in tasks]
    return page(rows, name, "reach", tables="\n\n".join(tables), side=SIDE, length=LENGTH)


def _table(rows: list[Row]) -> str:
    distances = sorted({row["distance"] for row in rows})
    lines = []
    for found in grouped(rows, label):
        farthest = max(found, key=lambda row: row["distance"])
        accuracies = {f"at{row['distance']}": f"{row['accuracy']:.1%}" for row in found}
        green = f"{farthest['green']:.1f}" if "green" in farthest else ""
        lines.append(
            dict.fromkeys((f"at{d}" for d in distances), "")
            | farthest
            | accuracies
            | {"network": label(farthest), "green": green}
        )
    columns = {"network": "{network}", "weights": "{weights:,}", **{f"d = {d}": f"{{at{d}}}" for d in distances}}
    return table(lines, {**columns, "gradient's radius": "{sees:.1f}", "Green's radius": "{green}"})


def draw(rows: list[Row], path: Path) -> None:
    """Draws accuracy against distance: one panel per task, one line per network through the mean of its seeds."""
    tasks = grouped(rows, lambda row: row["task"])
    figure, axes = plots.panels(len(tasks), 3.4 * len(tasks), 3.8, sharey=True)
    for panel, of_task in zip(axes, tasks, strict=True):
        panel.set(title=of_task[0]["task"], xlabel="distance in pixels")
        panel.axhline(50, color="0.6", linestyle=":", label="guessing")
        for found in grouped(sorted(of_task, key=lambda row: row["distance"]), label):
            style = plots.STYLES[found[0]["architecture"]] | {"linestyle": "-" if found[0]["reach"] else "--"}
            distances = [row["distance"] for row in found]
            means, lowest, highest = (
                [100 * of(row["accuracies"]) for row in found] for of in (statistics.mean, min, max)
            )
            panel.plot(distances, means, label=label(found[0]), **style)
            panel.fill_between(distances, lowest, highest, color=style["color"], alpha=0.15)
    axes[0].set_ylabel("accuracy, %")
    plots.finish(figure, path, ncols=4)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
