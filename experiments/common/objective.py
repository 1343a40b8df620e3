"""Chooses the loss of a run from its flags and the labels of its data set."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.config import TrainConfig
from lowcost import data
from lowcost.data.splitting import class_counts
from lowcost.train.losses import (
    Loss,
    binary_cross_entropy,
    cross_entropy,
    pixel_cross_entropy,
    pixel_figures,
    squared_error,
)


def figures(config: TrainConfig, classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the names of what the loss of a run returns, with the shapes of the sums over images."""
    if config.task == "pixels":
        return pixel_figures(classes)
    weight = () if config.class_weights is None else ("weight",)
    return dict.fromkeys(("loss",) if config.task == "values" else ("loss", "correct", *weight), ())


def loss_of(config: TrainConfig, smoothing: float, dataset: data.Dataset) -> tuple[Loss, dict[str, Any]]:
    """Returns the loss, and what config.json must hold of it besides the flags.

    Args:
        config: the flags.
        smoothing: share of the target that is spread over all classes; values have none.
        dataset: the labels.

    Raises:
        ValueError, OSError: a flag that the task does not have, or a wrong value.
    """
    if config.class_weights is not None and config.task not in ("classes", "pixels"):
        raise ValueError(f"--class-weights needs --task classes or pixels, got {config.task}; leave it out")
    if config.task == "values":
        if config.label_smoothing:
            raise ValueError("--label-smoothing needs classes, tags or pixels, got --task values; leave it out")
        return squared_error, {}
    if config.task == "tags":
        return partial(binary_cross_entropy, smoothing=smoothing), {}
    weights = None if config.class_weights is None else class_weights(config.class_weights, dataset)
    extra = {} if weights is None else {"class_weights": list(weights)}
    loss = pixel_cross_entropy if config.task == "pixels" else cross_entropy
    return partial(loss, class_weights=weights, smoothing=smoothing), extra


def class_weights(source: str, dataset: data.Dataset) -> tuple[float, ...]:
    """Returns the weight of each class: N / (K n_k) for "auto", else those of a JSON file {"CLASS": weight, …}.

    N is the number of training images, or of their points with a label, and n_k that of class k.

    Raises:
        ValueError, OSError: the file cannot be read, or does not hold one positive number for each class.
    """
    if source == "auto":
        counts = class_counts(dataset.train.labels, len(dataset.classes))
        return tuple(counts.sum() / (len(counts) * counts.clip(min=1)))
    try:
        given = json.loads(Path(source).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--class-weights must be auto or a JSON file, got {source} ({error})") from None
    expected = f'--class-weights {source} must hold {{"CLASS": weight}} with a positive number for each class'
    if not isinstance(given, dict) or given.keys() != set(dataset.classes):
        got = ", ".join(sorted(given.keys() ^ set(dataset.classes))[:5]) if isinstance(given, dict) else "no object"
        raise ValueError(f"{expected}, got a difference in {got}; the classes are {', '.join(dataset.classes[:20])}")
    weights = tuple(given[name] for name in dataset.classes)
    if not all(type(weight) in (int, float) and 0 < weight < np.inf for weight in weights):
        raise ValueError(f"{expected}, got {given}")
    return weights
