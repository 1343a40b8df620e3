"""Writes files that are whole whatever happens meanwhile, and results as JSON lines, from which the pages are made."""

import contextlib
import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowcost import disk

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a regular file; if that fails or the machine stops, the file holds what it held before.

    The mode of the file stays. A link stays too, and the file that it leads to is replaced. Pipes and devices are
    written to, and so is the file that standard output or standard error goes to.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        there = None
    if there and (stream := _standard_stream(path)):
        stream.flush()
        stream.buffer.write(content)
        stream.flush()
    elif there and not stat.S_ISREG(there.st_mode):
        with open(os.open(path, os.O_WRONLY), "wb") as file:
            file.write(content)
    else:
        disk.replace(Path(os.path.realpath(path)), content, there and stat.S_IMODE(there.st_mode))


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
    """Writes one line per row, with null in place of NaN and infinities, which JSON has not; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(json.dumps(rows), parse_constant=lambda _: None)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_whole(path, "".join(lines).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file, none if there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Gives the rows of a file to be changed and then writes them; other processes wait until the block has ended."""
    from lowcost.train.lock import locked

    path = Path(os.path.realpath(path))
    with locked(path.parent, f".{path.name}.lock", wait=True):
        rows = read_rows(path)
        yield rows
        write_rows(path, rows)


def write_page(path: Path, text: str) -> None:
    """Writes a page in UTF-8."""
    write_whole(path, text.encode())


def write_results(path: Path, rows: Sequence[dict[str, Any]], page: str) -> None:
    """Writes the rows and the page that shows them to files of that name, with the suffixes .jsonl and .md."""
    write_rows(path.with_suffix(".jsonl"), rows)
    write_page(path.with_suffix(".md"), page)


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Writes a picture in the format of its suffix, or PNG if there is none; `options` are those of savefig."""
    picture = io.BytesIO()
    figure.savefig(picture, **{"format": path.suffix[1:] or "png", **options})
    write_whole(path, picture.getvalue())
