"""Files that are whole whatever happens meanwhile; and figures as JSON lines, from which the pages are made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """The file with this content, or as it was before."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line a row, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
