"""Reads the labels of every point: arrays of integers, and mask files beside images."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.dataset import IGNORED
from lowcost.data.listing import SUFFIXES as IMAGES
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
        ValueError: a part has no images, or two images or two masks of one stem.
    """
    parts = {}
    for part, folder in folders.items():
        left_out = Counter[str]()
        for inner in ("images", "masks"):
            if not (folder / inner).is_dir():
                expected = f"{printable(folder)} must hold the folders images and masks"
                raise FileNotFoundError(f"{expected}, got no {inner}; add it, or choose another task")
        images, masks = _by_stem(folder / "images", IMAGES, left_out), _by_stem(folder / "masks", SUFFIXES, left_out)
        if missing := [image for stem, image in images.items() if stem not in masks]:
            expected = f"{printable(folder / 'masks')} must hold a mask for each image, as STEM{SUFFIXES[0]}"
            got = f"none for {printable(os.path.basename(missing[0]))}"
            got += f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{expected}, got {got}; add it, or remove the image")
        if not images:
            raise ValueError(f"{printable(folder / 'images')} must hold images, got none; add some")
        left_out["masks without an image"] += len(masks.keys() - images.keys())
        report_left_out(folder, left_out)
        parts[part] = [*images.values()], np.array([masks[stem] for stem in images], object)
    return parts


def _by_stem(folder: Path, suffixes: tuple[str, ...], left_out: Counter[str]) -> dict[str, str]:
    """Returns the stem of each image in a folder → its path, ordered by name."""
    images, inner = list_images(folder, left_out, suffixes)
    left_out[f"folders inside {folder.name}"] += len(inner)
    paths: dict[str, str] = {}
    for image in images:
        stem = os.path.splitext(image.name)[0]
        if stem in paths:
            got = " and ".join(printable(os.path.basename(path)) for path in (paths[stem], image.path))
            raise ValueError(f"{printable(folder)} must hold one file per stem, got {got}; rename or remove one")
        paths[stem] = image.path
    return paths


def class_names(folder: Path) -> tuple[str, ...]:
    """Returns the lines of folder/classes.txt, the names of classes 0, 1, …; () if there is no such file."""
    path = folder / NAMES
    if not path.exists():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(path)} must be UTF-8 text, got {error}; save it as such") from error
    if len({"", *names}) <= len(names):
        raise ValueError(f"{printable(path)} must hold a different name in each line, got {printable(names)}")
    return names


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
