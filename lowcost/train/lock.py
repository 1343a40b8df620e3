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
    with contextlib.ExitStack() as opened:
        file = _open(directory / name)
        opened.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = _holder(file) or "another run"
            raise OSError(f"{directory} is in use by {holder}; wait for it, or choose another --workdir") from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            warning = f"warning: {directory} cannot be locked ({error.strerror}); start no second run in it"
            print(warning, file=sys.stderr)
        if _holder(file) is None:
            raise _not_ours(directory / name)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield


def _open(path: Path) -> int:
    """Opens the file without following a link, waiting for a pipe, or truncating anything."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise _not_ours(path) if error.errno == errno.ELOOP else error from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_ours(path)
    return file


def _holder(file: int) -> str | None:
    """Returns what the last holder wrote, "" if nothing, and None if something else is in the file."""
    content = os.pread(file, 1000, 0).decode(errors="replace")
    return content.strip() if re.fullmatch(r"(process \d+ on .*\n?)?", content) else None


def _not_ours(path: Path) -> OSError:
    return OSError(
        f"{path} must be a lock file of this program, got something else; remove it, or choose another folder"
    )
