"""The last file that a save writes: the sha256 of every other one, sealed by its own.

It proves damage without opening a file by more than a plain read, and names the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lowcost import disk

NAME = "manifest"
"""The file: its sha256 in the first line, the record as JSON in the second."""


class DamageError(Exception):
    """A directory is proven not to be what was saved: a file is missing or does not match its sha256."""


def write(directory: Path, record: dict[str, Any]) -> None:
    """Writes the record, with the sha256 of every file as record["files"], and brings it to the disk."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    sums = {file.relative_to(directory).as_posix(): _sha256(file) for file in files}
    text = json.dumps({**record, "files": sums}, allow_nan=False).encode()
    disk.replace(directory / NAME, b"%s\n%s" % (hashlib.sha256(text).hexdigest().encode(), text))


def verified(directory: Path) -> dict[str, Any]:
    """Returns the record, after a comparison of every file with its sha256.

    Raises:
        DamageError: a file is missing, or differs.
        OSError: a file cannot be read, which proves nothing.
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
