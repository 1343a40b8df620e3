"""Keeps compiled programs between runs, in folders to which nobody else can write: who can write there runs code."""

import contextlib
import grp
import os
import pwd
import stat
import sys
import zlib
from importlib import import_module
from pathlib import Path

import jax

from lowcost.terminal import warn

_ZSTANDARD = bytes.fromhex("28b52ffd")
"""First bytes of data in Zstandard's format, which JAX uses where a package for it is installed."""


def keep_compiled(directory: Path) -> None:
    """Lets JAX keep compiled programs in a folder, from which the next run reads them.

    A folder that the user has chosen (JAX_COMPILATION_CACHE_DIR) stays. A folder to which another user could have
    written is replaced by one in the user's cache folder, with one line on stderr; if that is not safe either, nothing
    is kept. Entries of other users and damaged ones are deleted: JAX would run the former, and warn of the latter at
    every start.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]  # JAX adds its options late
        return
    private = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lowcost", "compiled")
    for folder in (directory, private) if private.is_absolute() else (directory,):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            reason = _exposed(folder)
        except OSError:
            continue
        if not os.access(folder, os.W_OK):
            continue  # JAX would warn at every program that it cannot write
        if reason is None:
            _delete_unusable(folder)
            jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
            return
        warn(f"compiled programs are not read from {folder}: {reason}")


def _exposed(folder: Path) -> str | None:
    """Returns why others could replace the files in a folder: they own it or a folder above, or may write; or None."""
    folder = folder.resolve()
    for path in (folder, *folder.parents):
        status = path.stat()
        if status.st_uid not in (0, os.getuid()) or (path == folder and status.st_uid != os.getuid()):
            return f"{path} belongs to another user; use another --workdir"
        others = stat.S_IWOTH if _is_own(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
        sticky = path != folder and status.st_mode & stat.S_ISVTX  # nobody can rename what others own in it
        if status.st_mode & others and not sticky:
            return f"other users can write to {path}; remove their permission, or use another --workdir"
    return None


def _is_own(group: int) -> bool:
    """Returns whether a group is the user's own, of the same name and without other members."""
    with contextlib.suppress(KeyError):
        name, entry = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
        return entry.gr_name == name and set(entry.gr_mem) <= {name}
    return False


def _delete_unusable(folder: Path) -> None:
    """Deletes entries that another user owns, and those that are truncated or otherwise damaged."""
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError, ImportError):
            status = path.lstat()
            own = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
            content = path.read_bytes() if own else b""
            zstandard = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
            codec = import_module(zstandard) if content.startswith(_ZSTANDARD) else zlib
            try:
                codec.decompress(content)
            except Exception:  # each codec raises an error of its own
                path.unlink()
