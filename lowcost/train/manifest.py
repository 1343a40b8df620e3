"""Seals a checkpoint by a manifest: the sha256 of every other file and of itself, written last.

It proves damage by plain reads alone, and names the damaged file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lowcost import disk

NAME = "manifest"
"""File name. The first line is the sha256 of the second, which is the record as JSON."""


class DamageError(Exception):
    """A directory differs from what was saved: a file is missing or does not match its sha256."""


def write(directory: Path, record: dict[str, Any]) -> None:
    """Writes the record, with the sha256 of every file as record["files"], and flushes it to the disk."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    sums = {file.relative_to(directory).as_posix(): _sha256(file) for file in files}
    text = json.dumps({**record, "files": sums}, allow_nan=False).encode()
    disk.replace(directory / NAME, b"%s\n%s" % (hashlib.sha256(text).hexdigest().encode(), text))


def verified(directory: Path) -> dict[str, Any]:
    """Returns the record after comparing every file with its sha256.

    Raises:
        DamageError: a file is missing or differs.
        OSError: a file cannot be read, which does not prove damage.
    """
    try:
        seal, _, text = (directory / NAME).read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != seal:
            raise DamageError(f"{NAME} does not match its sha256")
        record = json.loads(text)
        for name, sha256 in record["files"].items():
            if _sha256(directory / name) != sha256:
                raise DamageError(f"{name} does not match its sha256")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamageError(f"{Path(error.filename).relative_to(directory)} is missing") from error
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
