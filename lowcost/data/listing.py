"""Finds the image files in a folder, and reports what else is there."""

import os
from collections import Counter
from os import PathLike

from lowcost.terminal import listed, note, printable

Entries = list[os.DirEntry[str]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_images(
    folder: str | PathLike[str], left_out: Counter[str], suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[Entries, Entries]:
    """Returns the images and the folders in a folder, each sorted by name, and counts all other entries by kind.

    An image is a regular file with one of the suffixes, in lower or upper case, or a link with such a name. A link to a
    folder counts as a folder. Hidden entries are left out.

    Args:
        folder: the folder.
        left_out: kind → number of entries left out, to which this folder's are added.
        suffixes: of the images, in lower case.

    Returns:
        (images, folders).

    Raises:
        FileNotFoundError: a link is broken: what it names may be a class, on a disk that is not mounted.
        OSError: the folder cannot be read.
    """
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":  # the latter is in archives from macOS
                left_out["hidden"] += 1
            elif entry.is_symlink() and not os.path.exists(entry.path):
                got = f"a broken link to {printable(os.readlink(entry.path))}"
                remedy = "mount or restore its target, or remove the link"
                raise FileNotFoundError(f"{printable(entry.path)} must exist, got {got}; {remedy}")
            elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(entry)
            elif suffix not in suffixes:
                left_out[suffix or "without suffix"] += 1
            elif entry.is_symlink() or entry.is_file():
                images.append(entry)
            else:
                left_out["pipes or devices"] += 1
    return images, folders


def report_left_out(folder: str | PathLike[str], left_out: Counter[str]) -> None:
    """Prints one line on stderr with the numbers of entries left out, if any, for at most ten kinds."""
    if left_out.total():
        kinds = [f"{count:,} {kind}" for kind, count in left_out.most_common() if count]
        note(f"{os.fspath(folder)}: ignored {left_out.total():,} entries: {listed(kinds)}")
