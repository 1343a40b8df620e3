"""Estimates what the runs of Table 2 need: hours at the speed measured here, and multiply-adds for other devices."""

import math
import sys
from collections.abc import Iterable

from experiments.common import runs
from experiments.common.config import Architecture, TrainConfig, Width
from experiments.common.entry import in_a_process
from experiments.common.files import read_rows
from experiments.common.timing import interleave
from lowcost.nn import network, network_cost
from lowcost.train.mesh import use_every_core

SHAPES: dict[str, tuple[int, int]] = {"cifar10": (50_000, 32), "cifar100": (50_000, 32), "stl10": (5_000, 96)}
"""Number of training images, and their side in pixels."""
PASSES = 3
"""A training step costs three forward passes: the backward pass takes two."""


def plan(wanted: Iterable[TrainConfig]) -> None:
    """Prints the runs with the hours that they need, and the sums.

    Args:
        wanted: configurations with the number of epochs.
    """
    total = work = 0.0
    speeds: dict[tuple, float] = {}
    for run in wanted:
        epochs = run.epochs or 0
        images, side = SHAPES.get(run.dataset) or _shape(run)
        images = run.train_images or images
        done = len(read_rows(run.directory() / "metrics.jsonl"))
        kind = (run.architecture, run.width, side)
        if kind not in speeds and done < epochs:
            print(f"measuring {run.architecture} {run.width} on {side}x{side} pixels …", file=sys.stderr)
            speeds[kind] = in_a_process(_images_per_second, *kind, run.batch_size)
        passes = max(0, epochs - done) * run.seeds * images
        hours = passes / speeds[kind] / 3600 if passes else 0.0
        total += hours
        work += PASSES * network_cost(network(run.architecture, run.width, 10), (side, side, 3)).multiply_adds * passes
        about = f"{run.dataset:8} {run.architecture:13} {run.width}  {done}/{epochs} epochs of {images:,} images"
        print(f"{about}, {run.seeds} seed{'s' * (run.seeds > 1)}: {_duration(hours)}", flush=True)
    assumed = "without augmentation and evaluation, and with the seeds one after another"
    print(f"{_duration(total)} in all on this device, {assumed}; {work:.1e} multiply-adds")


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 or not hours else f"{math.ceil(60 * hours)} min"


def _shape(run: TrainConfig) -> tuple[int, int]:
    train = runs.load(run).train
    return len(train), train.images.shape[1]


def _images_per_second(architecture: Architecture, width: Width, side: int, batch_size: int) -> float:
    """Returns the speed of three training steps."""
    from experiments import throughput

    use_every_core(batch_size)
    config = throughput.Config(width=width, size=side, batch_size=batch_size)
    ours = throughput.Ours(architecture, config)
    return batch_size / interleave({"train": ours.steps["train"]}, 3)["train"]
