"""Writes files that stay complete whatever interrupts the write."""

import contextlib
import os
import uuid
from pathlib import Path


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replaces a file, or makes it; if that fails or the machine stops, the old content stays.

    Args:
        path: the file; a link is replaced, not followed.
        content: the new content.
        mode: permissions of the file, or None for those of a new file.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:  # a new file, so that no planted link is followed
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # it names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Flushes the names in a folder to the disk if it can, since a power failure may undo a rename."""
    with contextlib.suppress(OSError):  # some file systems cannot; the files are complete anyway
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def reserve(path: Path, size: int) -> None:
    """Extends a file to at least `size` bytes where the system can, so that a full disk is an error now, not later.

    Raises:
        OSError: the disk lacks room.
    """
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
