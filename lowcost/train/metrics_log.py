"""metrics.jsonl: what every epoch came to, one line each."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MetricsLog:
    """metrics.jsonl: one line an epoch, read back on resume.

    Args:
        path: the file; made with the first row.
        epochs: rows of later epochs are dropped: they ran after the checkpoint that is gone on from. So are lines that
            a kill cut short.
    """

    def __init__(self, path: Path, epochs: int):
        self._path = path
        text = path.read_text() if path.exists() else ""
        self.rows: list[Row] = [row for row in map(_parse, text.splitlines()) if row and row["epoch"] <= epochs]
        whole = "".join(json.dumps(row) + "\n" for row in self.rows)
        if text != whole:
            replacement = path.with_suffix(".tmp")
            replacement.write_text(whole)
            replacement.replace(path)

    def last_epoch(self) -> int:
        """The epoch of the last row, 0 before the first."""
        return self.rows[-1]["epoch"] if self.rows else 0

    def append(self, row: Row) -> None:
        """Add one epoch."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def epoch_row(epoch, step, train, test, speed, seconds) -> Row:
    """One epoch's entry: means over its training images and over all test images."""
    return {
        "epoch": epoch,
        "step": step,
        **{f"train_{name}": value for name, value in train.items()},
        **{f"test_{name}": value for name, value in test.items()},
        "images_per_second": speed,
        "seconds": seconds,
    }


def epoch_line(row: Row, epochs: int) -> str:
    """The same for people."""
    speed = f"  {row['images_per_second']:,.0f} images/s" if row["images_per_second"] else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.2%}  "
        f"test loss {row['test_loss']:.3f} accuracy {row['test_accuracy']:.2%}{speed}"
    )


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None
