"""Caches decoded images in one file, which later runs memory-map."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from lowcost.disk import reserve
from lowcost.terminal import printable, warn

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray]
"""(shape, dtype) → an array to be filled, as `np.empty`."""
DIGEST_BYTES = 32
DAY_SECONDS = 86400


def cached(path: Path | None, make: Callable[[Allocate], NDArray], *, dtype: DTypeLike, length: int) -> NDArray:
    """Returns the array of the file, memory-mapped; makes the file first if it is missing or damaged.

    The file ends with a digest of its name and content, which every call checks. It reveals damaged and exchanged
    files, not forged ones. A file that cannot be used is reported on stderr and replaced.

    `make` fills a memory-mapped file, so that the array may be larger than the memory. The file has a unique temporary
    name until it is complete and on the disk; among processes that make the same file at once, the first one that has
    completed it wins. If `make` fails, neither a file nor a new folder is left.

    Args:
        path: the .npy file; its folder is made if missing. The name must change with everything that changes the array.
            None makes the array in memory.
        make: fills an array from `Allocate` and returns it; if it allocates several, the last.
        dtype: expected dtype; a file with another one is replaced.
        length: expected length of the first axis; a file with another one is replaced.

    Raises:
        OSError: the folder cannot be written or is full, which shows when `make` allocates.
    """
    if path is None:
        return make(np.empty)
    if path.is_file():
        try:
            return _checked(path, dtype, length)
        except Exception as error:  # a damaged header raises errors of many types
            warn(f"{path} cannot be used ({error}); it is replaced")
    for temporary in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > DAY_SECONDS:  # of a killed process; others may be in use
                temporary.unlink()
    folder, temporary = path.parent, path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        with _naming_cache_dir(folder):
            folder.mkdir(parents=True, exist_ok=True)
            array = open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
            # Writing to a memory map on a full disk would kill the process.
            reserve(temporary, array.offset + array.nbytes + DIGEST_BYTES)
        return array

    try:
        made = make(allocate)
        assert isinstance(made, np.memmap)
        with _naming_cache_dir(folder):
            made.flush()
            with temporary.open("rb+") as file:
                file.write(_digest(file, path.name, made.offset + made.nbytes))
                file.flush()
                os.fsync(file.fileno())
            del made  # Windows renames no file that is mapped
            with suppress(Exception):  # another process was faster; on NFS others lose a mapped file that is replaced
                return _checked(path, dtype, length)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()  # fails unless it is empty
    return open_memmap(path, mode="r")


def _checked(path: Path, dtype: DTypeLike, length: int) -> NDArray:
    """Returns the array of the file; raises ValueError, or any error of NumPy, if the file is damaged."""
    array = open_memmap(path, mode="r")
    with path.open("rb") as file:
        intact = _digest(file, path.name, array.offset + array.nbytes) == file.read(DIGEST_BYTES + 1)
    if not intact or array.dtype != dtype or len(array) != length:
        raise ValueError("its content does not match its digest")
    return array


def _digest(file: BinaryIO, name: str, size: int) -> bytes:
    """Returns the sha256 of the name and of the first `size` bytes, after which the file is positioned."""
    digest = hashlib.sha256(name.encode())
    while chunk := file.read(min(2**20, size - file.tell())):
        digest.update(chunk)
    return digest.digest()


@contextmanager
def _naming_cache_dir(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "name another folder, or None to keep the images in memory"
        raise OSError(f"cache_dir must be writable, got {printable(folder)} ({error}); {remedy}") from error
