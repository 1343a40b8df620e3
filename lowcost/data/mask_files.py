"""Finds the mask file of each image, which holds the class of every pixel."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.listing import SUFFIXES as IMAGES
from lowcost.data.listing import list_images, report_left_out
from lowcost.terminal import printable

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""The suffixes of mask files; writers of the other formats change the numbers."""
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
            names = ", ".join("STEM" + suffix for suffix in SUFFIXES)
            expected = f"{printable(folder / 'masks')} must hold a mask for each image, as {names}"
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
