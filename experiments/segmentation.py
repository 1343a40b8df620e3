"""Labels every point of a real image: low-cost networks against a U-Net of as many weights. A smoke benchmark.

The task microscopy is nuclei in an image of 512 x 512 pixels. It needs two files of the package stardist, but none of
the packages that stardist requires: `pip install --no-deps stardist`. The task tissue is grey matter, white matter and
fluid in the template MNI152, which comes with nilearn: `pip install '.[volumes]'`. Each task is one image. The figures
compare networks on it; they do not show how well a network labels other images. Networks that OUT.jsonl holds already
are not trained again.
"""

import dataclasses
import functools
import itertools
import re
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from experiments.common import entry, evaluation_plots, masks, timing
from experiments.common.config import check_counts, values
from experiments.common.evaluation import point_confusion
from experiments.common.recipes import Recipe
from experiments.common.results import Results, Row, grouped, page, provenance, spread, table
from experiments.common.scenes import DECODED_STEPS, TASKS, Place, Scene, Task
from lowcost.data import IGNORED
from lowcost.train.losses import pixel_cross_entropy, pixel_figures
from lowcost.train.overlap import mean_overlaps, overlaps
from lowcost.train.state import count_weights, create_state
from lowcost.train.step import make_train_step

ROUNDS = 7
"""Rounds in which the training steps alternate."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The tasks, the recipe, and where to write the figures."""

    tasks: tuple[Task, ...] = get_args(Task)
    """The images."""
    steps: int = 300
    """Optimiser steps, each with new random patches."""
    learning_rate: float = 0.01
    """The largest one, of one cycle of Adam."""
    seeds: int = 5
    """Number of networks of each kind, with the seeds 0, 1, …"""
    validate: bool = False
    """Leave out some of the training part and test on it, to choose a recipe without the test part."""
    out: Path = Path("runs/results/segmentation")
    """Writes OUT.md, OUT.jsonl, a figure OUT-TASK.png per task, and the predictions of seed 0 in the folder OUT."""


def main(config: Config) -> None:
    """Trains and times the networks, writes the files after each of them, prints the tables."""
    check_counts(config, "steps", "seeds")
    results, complete = Results(config, markdown, without=("tasks",)), not config.validate
    results.resume()
    for task in config.tasks:
        scene = TASKS[task].scene(config.validate)
        for network in TASKS[task].networks:
            if (task, network) not in [(row["task"], row["network"]) for row in results.rows]:
                results.add([train(config, task, network, scene)], complete=complete)
                print("{task}, {network}: mean IoU {mean_iou:.2%}".format(**results.rows[-1]), flush=True)
        rows = [row for row in results.rows if row["task"] == task]
        if any("step_milliseconds" not in row for row in rows):
            times = measure(config, task, scene)
            for row in rows:
                row["step_milliseconds"] = times[row["network"]]
            results.add([], complete=complete)
        draw(config, task, scene, rows)
    results.show()


def batch(rng: np.random.Generator, scene: Scene, side: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random patches of the training part, each flipped at random along each axis, and their labels.

    The middle of a patch has a label. Images are float32 [N, *grid, 1], labels uint8 [N, *grid].
    """
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    while len(images) < number:
        low, high = np.array(scene.train[int(rng.integers(len(scene.train)))]).T
        start, flips = rng.integers(low, high - side + 1), rng.choice((1, -1), len(low))
        if scene.labels[tuple(start + side // 2)] != IGNORED:
            place, flipped = tuple(slice(a, a + side) for a in start), tuple(slice(None, None, x) for x in flips)
            images.append(scene.image[place][flipped])
            labels.append(scene.labels[place][flipped])
    return scene.perturbed(rng, np.stack(images)[..., None]), np.stack(labels)


def tiles(scene: Scene, side: int) -> list[Place]:
    """Returns the places of the tiles of the test part, side by side, that have labels."""
    found: list[Place] = []
    for box in scene.test:
        sides = [min(side, high - low) for low, high in box]
        starts = [range(low, high - n + 1, n) for (low, high), n in zip(box, sides, strict=True)]
        found += [tuple(map(slice, at, np.add(at, sides))) for at in itertools.product(*starts)]
    return [place for place in found if (scene.labels[place] != IGNORED).any()]


@functools.cache
def programs(config: Config, task: Task, network: str, axes: int) -> tuple[Any, Any, Any]:
    """Returns, jitted, random key → state before training, its training step, and (variables, images) → classes."""
    setting = TASKS[task]
    net, classes = setting.networks[network], len(setting.classes)
    recipe = Recipe(learning_rate=config.learning_rate, schedule="one_cycle")
    optimizer = recipe.transformation(1, config.steps)
    create = partial(
        create_state, net, optimizer, image_shape=(setting.side,) * axes + (1,), figures=pixel_figures(classes)
    )
    step = make_train_step(net, optimizer, lambda images, draw: images, config.steps, loss=pixel_cross_entropy)
    predict = jax.jit(lambda variables, images: net.apply(variables, images).argmax(-1).astype(np.uint8))
    return jax.jit(create), jax.jit(step), predict


def train(config: Config, task: Task, network: str, scene: Scene) -> Row:
    """Returns the overlaps on the test part of the networks that differ in their seed; writes what seed 0 predicts."""
    begin, setting = time.monotonic(), TASKS[task]
    create, step, predict = programs(config, task, network, scene.image.ndim)
    places = tiles(scene, setting.tile)
    tested = np.stack([scene.image[place] for place in places])[..., None]
    tested = scene.perturbed(np.random.default_rng(config.seeds), tested)
    classes, confusions = len(setting.classes), []
    for seed in range(config.seeds):
        state, rng = create(jax.random.key(seed)), np.random.default_rng(seed)
        for _ in range(config.steps):
            state = step(state, *batch(rng, scene, setting.side, setting.batch), np.arange(setting.batch))
        found = np.full_like(scene.labels, IGNORED)
        for place, image in zip(places, tested, strict=True):
            found[place] = predict(state.variables, image[None])[0]
        found[scene.labels == IGNORED] = IGNORED
        labels = np.where(found == IGNORED, IGNORED, scene.labels)
        confusions.append(point_confusion(labels, found, classes))
        if not seed:
            masks.write(mask_path(config, task, network), found[scene.shown])
    means, ious = mean_overlaps(np.stack(confusions)), overlaps(np.stack(confusions))[0]
    return {
        "task": task,
        "network": network,
        "weights": count_weights(state.params),
        **{name: float(figure.mean()) for name, figure in means.items()},
        **{f"{name}_each": figure.tolist() for name, figure in means.items()},
        "classes": setting.classes,
        "ious": ious.mean(0).tolist(),
        **values(config, "steps", "learning_rate", "seeds", "validate"),
        "seconds": round(time.monotonic() - begin, 1),
        **provenance(),
    }


def measure(config: Config, task: Task, scene: Scene) -> dict[str, float]:
    """Returns the milliseconds of a training step of each network."""
    setting, steps = TASKS[task], {}
    examples = (*batch(np.random.default_rng(0), scene, setting.side, setting.batch), np.arange(setting.batch))
    for network in setting.networks:
        create, step, _ = programs(config, task, network, scene.image.ndim)
        steps[network] = timing.jitted(step, create(jax.random.key(0)), *examples)
    return {network: 1000 * seconds for network, seconds in timing.interleave(steps, ROUNDS).items()}


def mask_path(config: Config, task: Task, network: str) -> Path:
    """Returns where the predictions of a network are, in the folder OUT."""
    return config.out / f"{task}-{re.sub(r'[^A-Za-z0-9_]+', '-', network)}.png"


def draw(config: Config, task: Task, scene: Scene, rows: list[Row]) -> None:
    """Draws the image, its labels, and the predictions of the best low-cost network and of the best U-Net.

    Draws nothing if the files of the predictions are gone.
    """
    from PIL import Image

    ranked = [row["network"] for row in sorted(rows, key=lambda row: row["mean_iou"]) if row["network"] != "resnet"]
    best = {name.startswith("U-Net"): name for name in ranked}
    names = [best[unet] for unet in (False, True)]
    paths = [mask_path(config, task, name) for name in names]
    if not all(path.exists() for path in paths):
        return
    predicted = np.stack([np.asarray(Image.open(path)) for path in paths])
    images, labels = (np.stack([x[scene.shown]] * 2) for x in (scene.image[..., None], scene.labels))
    path = config.out.with_name(f"{config.out.name}-{task}.png")
    evaluation_plots.draw_overlays(images, (labels, predicted), names, TASKS[task].classes, path)


def markdown(rows: list[Row], name: str = "segmentation") -> str:
    """Returns the page: a table and a figure per task, one line per network."""
    parts = []
    for of_task in grouped(rows, lambda row: row["task"]):
        task = of_task[0]["task"]
        found = [row | {f"iou_{i}": x for i, x in enumerate(row["ious"])} for row in of_task]
        columns: dict[str, Any] = {"network": "{network}", "weights": "{weights:,}"}
        columns |= {"mean IoU": partial(_percent, "mean_iou"), "mean Dice": partial(_percent, "mean_dice")}
        columns |= {f"IoU of {kind}": f"{{iou_{i}:.1%}}" for i, kind in enumerate(found[0]["classes"])}
        columns["ms per step"] = lambda row: f"{row['step_milliseconds']:.1f}" if "step_milliseconds" in row else ""
        figure = f"![the image, its labels and predictions]({name}-{task}.png)"
        parts.append(f"## {task.capitalize()}\n\n{table(found, columns)}\n\n{figure}")
    measured = {(row["task"], row["network"]) for row in rows}
    missing = [f"{task}, {x}" for task in TASKS for x in TASKS[task].networks if (task, x) not in measured]
    parts += [f"Not measured: {'; '.join(missing)}."] if missing else []
    constants = {"rounds": ROUNDS, "decoded_steps": DECODED_STEPS}
    return page(rows, name, "segmentation", tables="\n\n".join(parts), **constants, **TASKS)


def _percent(name: str, row: Row) -> str:
    return spread(row[f"{name}_each"], ".1%")


if __name__ == "__main__":
    entry.run(main, Config, long=True)
