"""Locks a directory, so that one run at a time works in it."""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from lowcost.terminal import warn

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of flock on file systems without locks."""
_FLAGS = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags to open a lock file: a link is not followed, and a pipe does not block."""
_REMEDY = "remove it, or choose another folder"


@contextlib.contextmanager
def locked(directory: Path, name: str = "lock", *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which the system releases when the process ends; warns on a file system without locks.

    Args:
        directory: the directory; made if missing.
        name: name of the lock file.
        wait: whether to wait until other processes release the lock, instead of raising an error.

    Raises:
        OSError: another process holds the lock, the directory cannot be written, or the file is not a lock file, which
            stays unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    foreign = OSError(f"{path} must be a lock file of this program, got another file; {_REMEDY}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise foreign
    with open(path, "rb+", buffering=0, opener=lambda path, flags: os.open(path, flags | _FLAGS, 0o666)) as file:
        holder = os.pread(file.fileno(), 1000, 0).decode(errors="replace").strip()
        if not re.fullmatch(r"(process \d+ on .*)?", holder):
            raise foreign
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            expected = f"{directory} must not be in use, got {holder or 'another run'}"
            raise OSError(f"{expected}; wait for it, or choose another --workdir") from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            warn(f"{directory} cannot be locked ({error}); start no second run in it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
