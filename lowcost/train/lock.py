"""Lets one run at a time work in a directory."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of flock on file systems that have no locks."""
_REMEDY = "remove it, or choose another folder"


@contextlib.contextmanager
def locked(directory: Path, name: str = "lock", *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which the system releases when the process ends; on a file system without locks, only warns.

    Args:
        directory: made if missing.
        name: of the lock file in it.
        wait: wait until other processes have released the lock, instead of raising an error.

    Raises:
        OSError: another process holds the lock, the directory cannot be written, or the file is no lock file, in which
            case it stays as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    with open(path, "rb+", buffering=0, opener=_open) as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        holder = re.fullmatch(rb"(process \d+ on .*)?\n?", os.pread(file.fileno(), 1000, 0)) if regular else None
        if holder is None:
            raise OSError(f"{path} must be a lock file of this program, got another file; {_REMEDY}")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            who = (holder[1] or b"another run").decode(errors="replace")
            raise OSError(f"{directory} is in use by {who}; wait for it, or choose another --workdir") from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            print(f"warning: {directory} cannot be locked ({error}); start no second run in it", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _open(path: str, flags: int) -> int:
    """Opens the file without following a link, waiting at a pipe, or truncating anything."""
    try:
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(f"{path} must be a lock file of this program, got a link; {_REMEDY}") from error
