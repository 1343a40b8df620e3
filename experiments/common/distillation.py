"""Distils trained networks, `--teacher`: training towards their probabilities."""

from pathlib import Path
from typing import Any

import jax

from experiments.common.config import TrainConfig
from lowcost import data
from lowcost.deploy.loading import configuration, load, load_run
from lowcost.deploy.packaged import Loaded, decode, encode
from lowcost.train import checkpoint, processes
from lowcost.train.distillation import Teacher


def check(config: TrainConfig) -> None:
    """Raises ValueError for flags that need --teacher, a wrong --distill, and another task than classes."""
    if not config.teacher and config.distill != TrainConfig.distill:
        raise ValueError(f"--distill needs --teacher, got {config.distill} and none; add one, or leave it out")
    if not 0 < config.distill <= 1:
        raise ValueError(f"--distill must be above 0 and at most 1, got {config.distill}")
    if config.teacher and config.task != "classes":
        raise ValueError(f"--teacher needs --task classes, got {config.task}; leave it out")


def teachers(config: TrainConfig, dataset: data.Dataset) -> tuple[str, tuple[Teacher, ...]]:
    """Returns the sha256 of the weights of all teachers, and the teachers, which process 0 reads for all.

    Raises:
        ValueError: what --teacher names cannot be loaded, or has other classes or takes other images than the run.
    """

    def read() -> list[bytes]:  # networks cannot be pickled
        return [encode(network) for source in config.teacher for network in _networks(source, dataset)]

    found = [decode(content, "--teacher") for content in processes.from_process_0(read)]
    digest = checkpoint.digest([network.variables for network in found])
    return digest, tuple(Teacher(network.net, jax.device_get(network.variables)) for network in found)


def _networks(source: str, dataset: data.Dataset) -> list[Loaded]:
    """Returns the networks of a source: those of all seeds of a work directory, else one."""
    try:
        found = [load(source)]
        if Path(source).is_dir():
            seeds = configuration(Path(source)).get("seeds", 1)
            found += [load_run(Path(source), index=index) for index in range(1, seeds)]
    except (ValueError, OSError) as error:
        raise ValueError(f"--teacher {source} cannot be loaded: {error}") from error
    ours, theirs = _described(dataset), _described(found[0])
    if name := next((name for name in ours if ours[name] != theirs[name]), ""):
        problem = f"--teacher {source} must have {name} {ours[name]}, as the run has, got {theirs[name]}"
        raise ValueError(f"{problem}; choose another teacher, or change the data")
    return found


def _described(about: data.Dataset | Loaded) -> dict[str, Any]:
    """Returns what must be the same for the teachers and the run; first what explains the others."""
    dtype = about.dtype if isinstance(about, Loaded) else about.train.images.dtype.name
    return {
        "task": about.task,
        "number of classes": len(about.classes),
        **{f"class {i}": name for i, name in enumerate(about.classes)},
        "mask": "yes" if about.masked else "no",
        "image shape": " x ".join(map(str, about.image_shape)),
        "numbers": dtype,
    }
