"""Identifies a run by what must be equal when it resumes, and in all of its processes."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.setup import Setup
from experiments.common.workdir import shared
from lowcost import data
from lowcost.deploy.loading import flat
from lowcost.train import processes


def describe(dataset: data.Dataset) -> dict[str, Any]:
    """Returns what must be the same for a run to resume: classes, image shape, counts, and every pixel and label."""
    about = {
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "digest": dataset.digest,
    }
    if dataset.validation is not None:
        about["validation"] = len(dataset.validation)
    if dataset.scale is not None:
        about["scale"] = [list(numbers) for numbers in dataset.scale]
    if (dtype := dataset.train.images.dtype) != np.uint8:
        about["dtype"] = dtype.name
    if dataset.moments is not None:
        about["moments"] = [list(numbers) for numbers in dataset.moments]
    if dataset.masked:
        about["masked"] = True
    if dataset.name == "arrays":  # whose file states them
        about["keeps"] = sorted(dataset.keeps)
    return about


def settings() -> dict[str, Any]:
    """Returns JAX's settings that a result depends on."""
    names = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision")
    return {name: getattr(jax.config, name) for name in names}


def differing_fields(ready: Setup) -> list[str]:
    """Returns the names of what differs between the processes: code, configuration, recipe, data, settings."""
    packages = (Path(__file__).parents[1], Path(data.__file__).parents[1])
    code = b"".join(path.read_bytes() for package in packages for path in sorted(package.rglob("*.py")))
    parts = {"ingredients": dataclasses.asdict(ready.recipe), "data": describe(ready.dataset) | ready.extra}
    versions = processes.differing({"code": hashlib.sha256(code).hexdigest(), "jax": jax.__version__})
    return versions or processes.differing({**shared(ready.config), **flat(parts), **settings()})


def check_data(workdir: Path, dataset: data.Dataset, of_run: dict[str, Any]) -> None:
    """Raises ValueError unless the data set has the classes, image shape, dtype and mask of the run, see `describe`."""
    plain = {"dtype": "uint8", "masked": False}  # which `describe` leaves out
    got, expected = plain | describe(dataset), plain | of_run
    for field in ("classes", "image_shape", *plain):
        if got[field] != expected[field]:
            problem = f"the run in {workdir} was trained on {field} {expected[field]}, the data has {got[field]}"
            raise ValueError(f"{problem}; name its own data with --data-dir")
