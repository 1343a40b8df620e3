"""What the runs of Table 2 need: hours at the speed measured here, and multiply-adds for every other device."""

import math
import sys
from collections.abc import Iterable
from typing import Any, Literal

from experiments.common.config import Architecture, TrainConfig
from experiments.common.entry import in_a_process
from experiments.common.files import read_rows

SHAPES: dict[str, tuple[int, int]] = {"cifar10": (50_000, 32), "cifar100": (50_000, 32), "stl10": (5_000, 96)}
"""Training images, and their side, for the plan."""


def plan(runs: Iterable[TrainConfig]) -> None:
    """Print the runs and their hours, and the multiply-adds of all: what another device's hours can be told from.

    Args:
        runs: with the number of epochs.
    """
    from lowcost import nn

    total = work = 0.0
    speeds: dict[tuple, float] = {}
    for run in runs:
        epochs = run.epochs or 0
        images, side = SHAPES.get(run.dataset) or _folder(run)
        if run.train_images is not None:
            images = run.train_images
        done = len(read_rows(run.directory() / "metrics.jsonl"))
        kind = (run.architecture, run.width, side)
        if kind not in speeds and done < epochs:
            print(f"measuring {run.architecture} {run.width} on {side}x{side} pixels …", file=sys.stderr)
            speeds[kind] = _images_per_second(*kind, run.batch_size)
        hours = (epochs - done) * run.seeds * images / speeds[kind] / 3600 if done < epochs else 0.0
        total += hours
        forward = nn.network_cost(nn.network(run.architecture, run.width, 10), (side, side, 3)).multiply_adds
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


def _images_per_second(*kind: Any) -> float:
    """Returns the speed of three training steps."""
    return in_a_process(_measure, *kind)


def _measure(architecture: Architecture, width: Literal["A", "B", "C"], side: int, batch_size: int) -> float:
    from experiments import throughput
    from experiments.common.timing import interleave
    from lowcost.train.mesh import use_every_core

    use_every_core(batch_size)
    ours = throughput.Ours(architecture, throughput.Config(width=width, size=side, batch_size=batch_size))
    return batch_size / interleave({"train": ours.steps["train"]}, 3)["train"]
