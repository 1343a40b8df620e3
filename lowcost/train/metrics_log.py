"""metrics.jsonl: what every epoch came to, one line each; the same for TensorBoard when wished."""

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
"""Mean metrics: a number each, or with several seeds one for each of them."""


def read_rows(path: Path, epochs: int) -> list[Row]:
    """Returns the rows of metrics.jsonl, which may be missing, and removes lines that are none.

    Args:
        path: the file. A damaged line is removed with a line on stderr, and one that a kill cut short without.
        epochs: rows of later epochs are dropped: they ran after the checkpoint from which the run resumes.
    """
    content = path.read_bytes() if path.exists() else b""
    rows: list[Row] = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        row = _parse(line)
        if row is None and line.endswith(b"\n"):
            warn(f"warning: line {number} of {path} is damaged; its epoch is left out")
        elif row is not None and row["epoch"] <= epochs:
            rows.append(row)
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if content != whole:
        disk.replace(path, whole)
    return rows


class MetricsLog:
    """One line an epoch.

    Args:
        rows: of earlier epochs.
        path: metrics.jsonl, to be appended to; None in processes that write nothing.
        tensorboard: folder of TensorBoard's files, or None; rows of earlier epochs stay, later ones are replaced.

    Raises:
        ImportError: TensorBoard is wished for, and tensorboardX is not installed.
    """

    def __init__(self, rows: list[Row], path: Path | None, tensorboard: Path | None = None):
        self.rows, self._path, self._board = rows, path, None
        if tensorboard is not None:
            with needs_extra("tensorboard"):
                from tensorboardX import SummaryWriter
            self._board = SummaryWriter(str(tensorboard), purge_step=self.last_epoch() + 1)

    def last_epoch(self) -> int:
        """The epoch of the last row, 0 before the first."""
        return self.rows[-1]["epoch"] if self.rows else 0

    def append(self, row: Row) -> None:
        """Adds one epoch, with None in place of NaN and infinities, which JSON has not."""
        row = json.loads(json.dumps(row), parse_constant=lambda _: None)
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["epoch"])
            self._board.flush()


def epoch_row(epoch: int, step: int, train: Metrics, test: Metrics, **more: Any) -> Row:
    """One epoch's entry: means over its training images and over all test images, and over the seeds if there are many.

    Those of each seed stand beside as a list, "test_accuracy_seeds" for instance. Where test is empty the epoch was not
    evaluated.
    """
    row: Row = {"epoch": epoch, "step": step}
    for part, metrics in {"train": train, "test": test}.items():
        for name, value in metrics.items():
            row[f"{part}_{name}"] = float(np.mean(value))
            if np.ndim(value):
                row[f"{part}_{name}_seeds"] = [float(x) for x in value]
    return {**row, **more}


def epoch_line(row: Row, epochs: int) -> str:
    """Returns one line for the terminal; numbers that are not finite read "nan"."""
    numbers = {name: float("nan") if value is None else value for name, value in row.items()}
    parts = [
        f"{part} loss {numbers[f'{part}_loss']:.3f} accuracy {numbers[f'{part}_accuracy']:.2%}"
        for part in ("train", "test")
        if f"{part}_loss" in row
    ]
    if count := row["skipped"]:
        parts.append(f"{count:,} step{'s' * (count > 1)} skipped so far: loss or gradient not finite")
    speed = [f"{row['images_per_second']:,.0f} images/s"] if row["images_per_second"] else []
    return "  ".join([f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", *parts, *speed])


def _parse(line: bytes) -> Row | None:
    """Returns what `epoch_row` made, or None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("epoch")) is int else None
