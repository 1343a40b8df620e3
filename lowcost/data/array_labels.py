"""Checks labels that come as arrays: one class per example, or one number per tag or value."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lowcost.data.dataset import Task
from lowcost.data.labels import VALUE_LIMIT
from lowcost.terminal import printable


def class_labels(
    labelled: Mapping[str, tuple[str, NDArray]], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Returns the names of the classes, and part → the class of each example, int32 [N]."""
    columns = {}
    for part, (where, labels) in labelled.items():
        if labels.shape[1:] not in ((), (1,)) or labels.dtype.kind not in "biuU":
            expected = f"{where} must be integers or strings, [N] or [N, 1]"
            one = labels.shape[1:] in ((), (1,))
            remedy = "cast them" if one else "take the argmax of one-hot labels"
            tasks = "task tags or values" if one else "task pixels if they are classes of points, or tags or values"
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{expected}, got {got}; {remedy}, or choose the {tasks}")
        columns[part] = labels.ravel()
    train = columns["train"]
    if train.dtype.kind == "U":
        for part in [] if classes else [part for part, column in columns.items() if column.dtype.kind != "U"]:
            problem = f"{labelled[part][0]} must be strings as in training, got {columns[part].dtype}"
            raise ValueError(f"{problem}; add the array classes")
        classes = classes or tuple(np.unique(train).tolist())
    elif not classes:
        low, high = int(train.min()), int(train.max())
        if low < 0 or high >= len(train):
            expected = f"{labelled['train'][0]} must be from 0 to K - 1, for at most {len(train)} classes"
            raise ValueError(f"{expected}, got {low}..{high}; renumber them, or use strings")
        classes = tuple(map(str, range(high + 1)))
    by_name = {name: i for i, name in enumerate(classes)}
    result = {}
    for part, column in columns.items():
        unique, inverse = np.unique(column, return_inverse=True)
        found = unique.tolist()
        places = by_name if column.dtype.kind == "U" else {i: i for i in range(len(classes))}
        if unknown := [label for label in found if label not in places]:
            expected = f"{labelled[part][0]} must be of the {len(classes)} classes"
            raise ValueError(f"{expected}, got {printable(repr(unknown[0]))}; correct them, or the array classes")
        result[part] = np.array([places[label] for label in found], np.int32)[inverse]
    if len(classes) < 2:
        raise ValueError(f"{labelled['train'][0]} must be of at least two classes, got {classes}")
    return classes, result


def number_labels(
    labelled: Mapping[str, tuple[str, NDArray]], names: tuple[str, ...], task: Task
) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Returns the names of the tags or values, and part → labels, float64 [N, K]."""
    result = {}
    for part, (where, labels) in labelled.items():
        columns = labels.reshape(len(labels), -1)
        names = names or tuple(map(str, range(columns.shape[1])))
        numeric = labels.ndim <= 2 and labels.dtype.kind in "fiub"
        if not numeric or columns.shape[1] != len(names):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{where} must be numbers [N, {len(names)}], one for each of the {task}, got {got}")
        columns = columns.astype(np.float64)
        if not (np.isin(columns, (0, 1)) if task == "tags" else np.abs(columns) < VALUE_LIMIT).all():
            expected = "0 or 1" if task == "tags" else f"from {-VALUE_LIMIT} to {VALUE_LIMIT}"
            raise ValueError(f"{where} must be {expected}, got {columns.min()}..{columns.max()}")
        result[part] = columns
    return names, result
