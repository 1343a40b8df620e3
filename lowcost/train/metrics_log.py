"""Writes metrics.jsonl, one line per epoch, and the same figures for TensorBoard on request."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowcost import disk
from lowcost.extras import needs_extra
from lowcost.terminal import warn

Row = dict[str, Any]
Metrics = Mapping[str, np.ndarray]
"""Mean metrics by name; with several seeds an array with one number for each."""


def epoch_rows(path: Path) -> list[Row]:
    """Returns the rows of metrics.jsonl, none if there is no file.

    One line on stderr reports each damaged line, except a last line that a kill cut short.
    """
    rows = []
    for number, line in enumerate(_content(path).splitlines(keepends=True), start=1):
        if (row := _parse(line)) is not None:
            rows.append(row)
        elif line.endswith(b"\n"):
            warn(f"line {number} of {path} is damaged; its epoch is left out")
    return rows


def repaired_rows(path: Path, epochs: int) -> list[Row]:
    """Returns the rows of metrics.jsonl up to an epoch, and removes all other lines from it.

    Args:
        path: the file, see `epoch_rows`.
        epochs: rows of later epochs are removed, since they are newer than the checkpoint from which the run resumes.
    """
    rows = [row for row in epoch_rows(path) if row["epoch"] <= epochs]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if _content(path) != whole:
        disk.replace(path, whole)
    return rows


class MetricsLog:
    """Appends one line per epoch.

    Args:
        rows: rows of earlier epochs.
        path: metrics.jsonl; None in processes that write nothing.
        tensorboard: folder of TensorBoard's files, or None. Figures of earlier epochs stay, later ones are replaced.

    Raises:
        ImportError: tensorboard is given, and tensorboardX is missing.
    """

    def __init__(self, rows: list[Row], path: Path | None, tensorboard: Path | None = None):
        self.rows, self._path, self._board = rows, path, None
        if tensorboard is not None:
            with needs_extra("tensorboard"):
                from tensorboardX import SummaryWriter
            self._board = SummaryWriter(str(tensorboard), purge_step=self.last_epoch() + 1)

    def last_epoch(self) -> int:
        """Returns the epoch of the last row, 0 before the first."""
        return self.rows[-1]["epoch"] if self.rows else 0

    def append(self, row: Row) -> None:
        """Appends one epoch, with None in place of NaN and infinities, which JSON lacks."""
        row = finite(row)
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["epoch"])
            self._board.flush()


def finite(content: Any) -> Any:
    """Returns JSON with None in place of NaN and infinities, which JSON lacks."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def epoch_row(epoch: int, step: int, parts: Mapping[str, Metrics], **more: Any) -> Row:
    """Returns the row of an epoch: mean metrics of its training, validation and test images.

    With several seeds it holds the mean over the seeds, and a list with one number for each, such as
    "test_accuracy_seeds". A part without metrics was not evaluated.
    """
    row: Row = {"epoch": epoch, "step": step}
    for part, metrics in parts.items():
        for name, value in metrics.items():
            row[f"{part}_{name}"] = float(np.mean(value))
            if np.ndim(value):
                row[f"{part}_{name}_seeds"] = [float(x) for x in value]
    return {**row, **more}


def epoch_line(row: Row, epochs: int) -> str:
    """Returns one line for the terminal, with "nan" for numbers that are not finite."""
    numbers = {name: float("nan") if value is None else value for name, value in row.items()}
    parts = []
    for part in ("train", "validation", "test"):
        if (loss := f"{part}_loss") in row:
            parts.append(f"{part} loss {numbers[loss]:.3f}")
        for figure, words in (("accuracy", "accuracy"), ("mean_iou", "mean IoU")):
            if (name := f"{part}_{figure}") in row:
                parts[-1] += f" {words} {numbers[name]:.2%}"
    if count := row["skipped"]:
        parts.append(f"{count:,} step{'s' * (count > 1)} skipped so far: loss or gradient not finite")
    speed = [f"{row['images_per_second']:,.0f} images/s"] if row["images_per_second"] else []
    return "  ".join([f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", *parts, *speed])


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _parse(line: bytes) -> Row | None:
    """Returns a row of `epoch_row`, or None for any other line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("epoch")) is int else None
