"""Writes files that are whole and on the disk, whatever happens meanwhile."""

import contextlib
import os
import uuid
from pathlib import Path


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces a regular file, or makes it; if that fails or the machine stops, it holds what it held before.

    Args:
        path: the file; a link is replaced, not followed.
        content: all bytes of the file.
        mode: permissions of the file, or None for those of a new file.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:  # a new file: no link that somebody has put there is followed
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot, and the file is whole anyway
        sync(path.parent)


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk, without which a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reserve(path: Path, size: int) -> None:
    """Makes a file at least so many bytes long where the system can, so that a full disk is an error now, not later.

    Raises:
        OSError: they do not fit.
    """
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
