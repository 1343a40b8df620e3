"""Lists the data sets that are published as one archive, and searches for the archives.

`catalogue.json` holds the entries. URL, size and checksum repeat the catalogue of tensorflow-datasets, since its import
is slow; a test compares both. tensorflow-datasets knows class names and numbers of images only of data sets that it has
prepared.
"""

import json
import os
import sys
from dataclasses import dataclass
from os import PathLike
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One data set as its authors published it.

    Args:
        name: its name in `load` and in tensorflow-datasets.
        url: URL of the archive.
        size: size of the archive in bytes.
        sha256: sha256 of the archive, in hexadecimal digits.
        classes: class names; label i means classes[i].
        image_shape: (H, W, C) of every image.
        train: number of training images.
        test: number of test images.
    """

    name: str
    url: str
    size: int
    sha256: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: int
    test: int

    @property
    def filename(self) -> str:
        """The file name of the archive."""
        return self.url.rpartition("/")[2]


ENTRIES: dict[str, Entry] = {
    entry["name"]: Entry(**entry | {key: tuple(entry[key]) for key in ("classes", "image_shape")})
    for entry in json.loads(Path(__file__).with_name("catalogue.json").read_text())
}
"""The entries by name; of CIFAR-100 the fine labels."""


def search(entry: Entry, data_dir: str | PathLike[str] | None = None) -> list[Path]:
    """Returns the folders to search for an archive, in order; a download goes into the first.

    They are data_dir, $LOWCOST_DATA if it is set, and lowcost in the user's cache folder if there is a home directory.

    Args:
        entry: the data set; a path that ends in the name of its archive stands for the folder of the archive.
        data_dir: the first folder; None leaves it out.

    Raises:
        ValueError: one of the first two begins with an unknown home directory.
        FileNotFoundError: there is no folder to search.
    """
    cache = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = {"data_dir": data_dir, "LOWCOST_DATA": os.environ.get("LOWCOST_DATA"), "": f"{cache}/lowcost"}
    paths = {name: os.path.expanduser(folder) for name, folder in named.items() if folder}
    for name, path in paths.items():
        if name and path.startswith("~"):
            raise ValueError(f"{name} must be a path, got {path}, whose home directory is unknown; write it in full")
    folders = [Path(path) for path in paths.values() if not path.startswith("~")]
    if not folders:
        expected = f"a folder to search for {entry.filename} must be given, got no home directory"
        raise FileNotFoundError(f"{entry.name}: {expected}; name one with --data-dir or $LOWCOST_DATA")
    return [folder.parent if folder.name == entry.filename else folder for folder in folders]


def find_archive(entry: Entry, data_dir: str | PathLike[str] | None = None) -> Path:
    """Returns the path of an archive in the first folder of `search` that has it; the content is not checked.

    Args:
        entry: the data set.
        data_dir: the first folder, or the archive itself; None leaves it out.

    Raises:
        FileNotFoundError: no folder has it; the message explains how to get it and where to put it.
    """
    folders = search(entry, data_dir)
    for folder in folders:
        if (path := folder / entry.filename).is_file():
            return path
    pickled = entry.filename.replace("binary", "python")
    got = f"{pickled}, which holds pickles" if any((f / pickled).is_file() for f in folders) else "none"
    expected = f"{entry.name}: {entry.filename} must be in {' or '.join(map(str, folders))}"
    raise FileNotFoundError(f"{expected}, got {got}; add --download, or {by_hand(entry, folders[0])}")


def by_hand(entry: Entry, folder: str | PathLike[str]) -> str:
    """Returns the end of an error message: what to do where nothing can be downloaded."""
    archive = f"{entry.url} ({entry.size / 2**20:.0f} MiB, sha256 {entry.sha256})"
    place = f"put it into {os.fspath(folder)}; the data set digits needs no file"
    return f"fetch it yourself from {archive}, on another machine if need be, and {place}"
