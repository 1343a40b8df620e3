"""Checks labels that come as arrays: one class per example or per point, or one number per tag or value."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lowcost.data.labels import VALUE_LIMIT
from lowcost.data.tasks import IGNORED, Task
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
        if not (numeric and names) or columns.shape[1] != len(names):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{where} must be numbers [N, {len(names) or 'K'}], one for each of the {task}, got {got}")
        columns = columns.astype(np.float64)
        if not (np.isin(columns, (0, 1)) if task == "tags" else np.abs(columns) < VALUE_LIMIT).all():
            expected = "0 or 1" if task == "tags" else f"from {-VALUE_LIMIT} to {VALUE_LIMIT}"
            raise ValueError(f"{where} must be {expected}, got {columns.min()}..{columns.max()}")
        result[part] = columns
    return names, result


def point_labels(
    labelled: Mapping[str, tuple[str, NDArray]], grids: Mapping[str, Sequence[int]], names: tuple[str, ...], listed: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]:
    """Returns the names of the classes, and part → the class of each point or `IGNORED`, uint8 [N, *grid].

    Args:
        labelled: part → a name for errors, and labels: integers [N, *grid] or [N, *grid, 1], from 0 to
            K - 1 or `IGNORED`.
        grids: part → [N, *grid] of its images.
        names: K names; () for 0, 1, … up to the largest label of all parts.
        listed: where the names are listed, for errors.

    Raises:
        ValueError: labels are no integers, of another shape or out of their range, there is only one class, or, without
            names, fewer than half of the classes have points.
    """
    if len(names) == 1:
        raise ValueError(f"{listed} must name at least two classes, got {names[0]!r}; list what the other points are")
    result = {}
    for part, (where, labels) in labelled.items():
        grid = tuple(grids[part])
        labels = labels[..., 0] if labels.shape == (*grid, 1) else labels
        if labels.dtype.kind not in "biu" or labels.shape != grid:
            remedy = "take the argmax of one-hot labels" if labels.shape[:-1] == grid else "cast or resize them"
            expected = f"{where} must be integers {list(grid)}, the class of each point"
            raise ValueError(f"{expected}, got {labels.dtype} {list(labels.shape)}; {remedy}")
        known = labels != IGNORED
        top = len(names) or IGNORED
        low, high = labels.min(where=known, initial=0), labels.max(where=known, initial=0)
        if low < 0 or high >= min(top, IGNORED):
            expected = f"{where} must be from 0 to {min(top, IGNORED) - 1}, or {IGNORED} at points without a label"
            remedy = "renumber them" + f", or list all classes in {listed}" * bool(names)
            raise ValueError(f"{expected}, got {low}..{high}; {remedy}")
        result[part] = labels.astype(np.uint8, copy=False)
    return names or _numbered(labelled["train"][0], result.values(), listed), result


def _numbered(where: str, parts: Iterable[NDArray[np.uint8]], listed: str) -> tuple[str, ...]:
    """Returns "0", "1", … up to the largest label of all parts."""
    seen = np.zeros(IGNORED + 1, bool)
    for labels in parts:
        for image in labels:
            seen[image] = True
    found = np.flatnonzero(seen[:IGNORED])
    number = int(found[-1]) + 1 if len(found) else 1
    if number < 2:
        remedy = f"replace {IGNORED}, which means no label, if it is a class"
        raise ValueError(f"{where} must be of at least two classes, got ('0',); {remedy}")
    if 2 * len(found) < number:
        expected = f"{where} must be most of the numbers up to the largest, {number - 1}, got {len(found)} of them"
        raise ValueError(f"{expected}; renumber them from 0, or list the names of all classes in {listed}")
    return tuple(map(str, range(number)))
