"""Writes files that are whole even if the program or the machine stops, and results as JSON lines and pages."""

import contextlib
import csv
import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lowcost import disk
from lowcost.train.metrics_log import finite


def check_target(path: Path, flag: str) -> None:
    """Raises OSError, naming the flag, unless a file can be written there: in a folder, and not in place of one."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder to write to; make it, or choose another {flag}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it with {flag}")


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a regular file; if that fails or the machine stops, the file holds what it held before.

    The mode of the file stays. A link stays too, and the file that it leads to is replaced. Pipes and devices are
    written to, and so is the file that standard output or standard error goes to.

    Raises:
        OSError: the file cannot be written.
    """
    existing = path.stat() if path.exists() else None
    if existing and (stream := _standard_stream(path)):
        stream.flush()
        stream.buffer.write(content)
        stream.flush()
    elif existing and not stat.S_ISREG(existing.st_mode):
        with open(os.open(path, os.O_WRONLY), "wb") as file:
            file.write(content)
    else:
        disk.replace(Path(os.path.realpath(path)), content, existing and stat.S_IMODE(existing.st_mode))


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Returns the rows as CSV, in which names that are not UTF-8 stay as they are."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode(errors="surrogateescape")


def messages(path: Path | None) -> Any:
    """Returns the stream to print on: sys.stderr if `path` is standard output, which then holds that file alone."""
    return sys.stderr if path and _standard_stream(path) is sys.stdout else sys.stdout


def _standard_stream(path: Path) -> Any:
    """Returns sys.stdout or sys.stderr if it goes to this file, else None."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # there is none, or it is no file
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
    return None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes one line per row, in ASCII, so that undecodable names of files can be stored; see `finite` for NaN."""
    write_page(path, "".join(json.dumps(row) + "\n" for row in finite(rows)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file, none if there is no file."""
    lines = path.read_text("utf-8").split("\n") if path.exists() else ()
    return [json.loads(line) for line in lines if line]


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a file, and writes them at the end of the block, until which other processes wait."""
    from lowcost.train.lock import locked

    path = Path(os.path.realpath(path))
    with locked(path.parent, f".{path.name}.lock", wait=True):
        rows = read_rows(path)
        yield rows
        write_rows(path, rows)


def write_page(path: Path, text: str) -> None:
    """Writes a page in UTF-8, with undecodable bytes of names of files as they are; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode(errors="surrogateescape"))
