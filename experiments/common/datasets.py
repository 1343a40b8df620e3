"""Loads the data set that the flags of a program name, with its parts."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from experiments.common.config import TrainConfig, values
from experiments.common.description import check_data
from lowcost import data
from lowcost.deploy.loading import configuration

CACHE = ".lowcost-cache"
"""Folder beside work directories for decoded images and compiled programs."""


def data_of(config: TrainConfig, *, trained: bool = False) -> data.Dataset:
    """Returns the images of a run, with the parts and the permission to flip that its flags ask for.

    Those of a trained run may be others than in training: fewer than --train-images, and without validation images.
    """
    dataset = load(config)
    if trained and dataset.task != config.task:
        problem = f"the run was trained on the task {config.task}, the data has {dataset.task}"
        raise ValueError(f"{problem}; name its own data with --data-dir")
    if config.train_images is not None:
        if config.train_images > len(dataset.train) and not trained:
            expected = f"--train-images must be at most the {len(dataset.train)} training images of {dataset.name}"
            raise ValueError(f"{expected}, got {config.train_images}; leave it out to take all")
        dataset = dataset.sample(min(config.train_images, len(dataset.train)))
    if config.validation_share and not (trained and dataset.validation):
        try:
            dataset = dataset.hold_out(config.validation_share)
        except ValueError:
            if not trained:
                raise
    if config.keeps_best and not trained:
        if dataset.validation is None:
            problem = "--keep-best and --patience need validation images, got none"
            raise ValueError(f"{problem}; add --validation-share 0.1, or images in DIR/val")
        if dataset.task == "pixels" and (dataset.validation.labels == data.IGNORED).all():
            raise ValueError("--keep-best and --patience need validation images with labels, got none; label some")
    if config.flip is None:
        return dataset
    others = tuple(change for change in dataset.keeps if change != "flip")
    return dataclasses.replace(dataset, keeps=("flip", *others) if config.flip == "horizontal" else others)


def load(config: Any, cache_dir: Path | None = None) -> data.Dataset:
    """Returns all images of the data set that the flags of a program name, decoded or from the cache.

    Args:
        config: a `TrainConfig`, or another configuration with its fields that name a data set.
        cache_dir: folder for the decoded images. None, for a run: see `image_cache`.
    """
    cache_dir = image_cache(config.directory()) if cache_dir is None else cache_dir
    options = values(config, "data_dir", "image_size", "download", "max_pixels", "test_share", "task")
    options |= values(config, "grid_axes", "length")
    return data.load(config.dataset, cache_dir=cache_dir, **options)


def image_cache(workdir: Path) -> Path | None:
    """Returns the folder for decoded images beside a work directory, or None where nothing can be written."""
    cache = workdir.absolute().parent / CACHE
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return cache if os.access(existing, os.W_OK) else None


def data_again(workdir: Path, config: TrainConfig, data_dir: Path | None) -> data.Dataset:
    """Returns the data set of a run, from `data_dir` if it was moved there.

    Raises:
        ValueError, OSError: there is none, or another one.
    """
    dataset = data_of(dataclasses.replace(config, data_dir=data_dir or config.data_dir), trained=True)
    check_data(workdir, dataset, configuration(workdir)["data"])
    return dataset
