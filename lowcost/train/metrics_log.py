"""metrics.jsonl: what every epoch came to, one line each."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MetricsLog:
    """metrics.jsonl: one line an epoch, read back on resume.

    Args:
        path: the file; made with the first row.
        epochs: rows of later epochs are dropped: they ran after the checkpoint that is gone on from.
    """

    def __init__(self, path: Path, epochs: int):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [row for row in map(_parse, lines) if row is not None and row["epoch"] <= epochs]
        if len(self.rows) != len(lines):
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            replacement.replace(path)

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
        return json.loads(line)
    except json.JSONDecodeError:  # a line that a kill cut short
        return None
