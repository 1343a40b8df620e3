"""Reads the labels of every point: arrays of integers, and mask files beside images."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.dataset import IGNORED
from lowcost.data.listing import list_images, report_left_out
from lowcost.terminal import printable

SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Of mask files; JPEG and WebP change the numbers."""
NAMES = "classes.txt"


def has_masks(folder: Path) -> bool:
    """Returns whether a folder holds exactly the folders images and masks, besides files."""
    return folder.is_dir() and [entry.name for entry in list_images(folder, Counter())[1]] == ["images", "masks"]


def pair(folders: Mapping[str, Path]) -> dict[str, tuple[list[str], NDArray[np.object_]]]:
    """Returns part → the images in its folder images, ordered by name, and their masks in masks: the same stems.

    Raises:
        FileNotFoundError: one of these folders, or the mask of an image, is missing.
        ValueError: a part has no images.
    """
    parts = {}
    for part, folder in folders.items():
        left_out = Counter[str]()
        for inner in ("images", "masks"):
            if not (folder / inner).is_dir():
                expected = f"{printable(folder)} must hold the folders images and masks"
                raise FileNotFoundError(f"{expected}, got no {inner}; add it, or choose another task")
        images = [entry.path for entry in list_images(folder / "images", left_out)[0]]
        masks = {_stem(entry.path): entry.path for entry in list_images(folder / "masks", left_out, SUFFIXES)[0]}
        if missing := [image for image in images if _stem(image) not in masks]:
            expected = f"{printable(folder / 'masks')} must hold a mask for each image, as STEM{SUFFIXES[0]}"
            got = f"none for {printable(os.path.basename(missing[0]))}"
            got += f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{expected}, got {got}; add it, or remove the image")
        if not images:
            raise ValueError(f"{printable(folder / 'images')} must hold images, got none; add some")
        left_out["masks without an image"] += len(masks.keys() - set(map(_stem, images)))
        report_left_out(folder, left_out)
        parts[part] = images, np.array([masks[_stem(image)] for image in images], object)
    return parts


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def class_names(folder: Path) -> tuple[str, ...]:
    """Returns the lines of folder/classes.txt, the names of classes 0, 1, …; () if there is no such file."""
    path = folder / NAMES
    if not path.exists():
        return ()
    names = tuple(line.strip() for line in path.read_text("utf-8").splitlines())
    if len({"", *names}) <= len(names):
        raise ValueError(f"{printable(path)} must hold a different name in each line, got {printable(names)}")
    return names


def point_labels(
    labelled: Mapping[str, tuple[str, NDArray]], grids: Mapping[str, Sequence[int]], names: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]:
    """Returns the names of the classes, and part → the class of each point or `IGNORED`, uint8 [N, *grid].

    Args:
        labelled: part → a name for errors, and labels: integers [N, *grid] or [N, *grid, 1], from 0 to
            K - 1 or `IGNORED`.
        grids: part → [N, *grid] of its images.
        names: K names; () for 0, 1, … up to the largest training label.

    Raises:
        ValueError: labels are no integers, of another shape or out of their range, or there is only one class.
    """
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
            raise ValueError(f"{expected}, got {low}..{high}; renumber them, or correct the names of the classes")
        names = names or tuple(map(str, range(int(high) + 1)))  # train comes first
        if len(names) < 2:
            remedy = f"replace {IGNORED}, which means no label, if it is a class"
            raise ValueError(f"{where} must be of at least two classes, got {names}; {remedy}")
        result[part] = labels.astype(np.uint8, copy=False)
    return names, result
