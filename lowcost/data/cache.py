"""Decoded images kept in one file, which is memory-mapped from the second start on."""

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


def cached(path: Path, make: Callable[[Allocate], NDArray], *, dtype: DTypeLike, length: int) -> NDArray:
    """Returns make(np.empty), or what it gave when the file was last missing or damaged; memory-mapped.

    The file ends with a digest of its name and content, which is checked by reading the file once. That finds damaged
    and exchanged files, not forged ones. A line on stderr reports a file that cannot be used, and it is made again.

    What `make` allocates lies in a file, so that it may be larger than the memory. The file takes its place once it is
    complete and on the disk. Until then its name is its own, so that processes which make the same one at once do not
    meet; the last one wins. If `make` fails nothing is left, no new folder either.

    Args:
        path: the .npy file; its folder is made if missing. The name must change with whatever changes the array.
        make: fills an array from `Allocate` and returns it; of several that it allocates, the last.
        dtype, length: of the array and its first axis; a file that has others is made again.

    Raises:
        OSError: the folder cannot be written or has no room, which is found when `make` allocates.
    """
    if path.is_file():
        try:
            return _checked(path, dtype, length)
        except Exception as error:  # a damaged header raises half a dozen kinds
            warn(f"warning: {path} cannot be used ({error}); it is made again")
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 86400:  # a killed process left it; a younger one may be at work
                left.unlink()
    folder, temporary = path.parent, path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            array = open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
            reserve(temporary, array.offset + array.nbytes + DIGEST_BYTES)  # a full disk would later kill the process
        return array

    try:
        made = make(allocate)
        assert isinstance(made, np.memmap)
        with _explained(folder):
            made.flush()
            with temporary.open("rb+") as file:
                file.write(_digest(file, path.name, made.offset + made.nbytes))
                file.flush()
                os.fsync(file.fileno())
            del made  # Windows renames no file that is mapped
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()  # only if nothing is in it
    return open_memmap(path, mode="r")


def _checked(path: Path, dtype: DTypeLike, length: int) -> NDArray:
    """Returns the array of the file; raises whatever NumPy raises, or ValueError, if the file is damaged."""
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
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "name a folder that can be written, or None to keep the images in memory"
        raise OSError(f"cache_dir {printable(folder)}: cannot be written ({error}); {hint}") from error
