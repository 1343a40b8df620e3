"""Lets one run at a time work in a directory."""

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from lowcost.terminal import warn

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of flock on file systems that have no locks."""
_FLAGS = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
"""Of a lock file: a link or pipe that appears meanwhile is neither followed nor waited at."""
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
            who = holder or "another run"
            raise OSError(f"{directory} is in use by {who}; wait for it, or choose another --workdir") from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            warn(f"warning: {directory} cannot be locked ({error}); start no second run in it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
