"""Reads labels.csv: the tags or values of the images in a folder and all folders below."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcost.data.listing import list_images, report_left_out
from lowcost.data.tasks import Task
from lowcost.terminal import printable

Labelled = tuple[list[str], NDArray]
"""The paths of N images, and their labels."""

LABELS = "labels.csv"
VALUE_LIMIT = 1e38
"""About the largest float32."""


def read_tables(folders: dict[str, Path], task: Task) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Returns the names of tags or values, and part → its images, ordered by path, with labels float64 [N, K]."""
    names: tuple[str, ...] = ()
    parts = {}
    for part, folder in folders.items():
        header, rows = read_labels(folder, task)
        names = names or header
        if header != names:
            raise ValueError(f"{printable(folder / LABELS)} must have the names of train, {names}, got {header}")
        left_out, unlabelled, waiting = Counter({".csv": -1}), 0, [str(folder)]  # the table is no other file
        while waiting:
            images, inner = list_images(waiting.pop(), left_out)
            unlabelled += sum(image.path not in rows for image in images)
            waiting += [entry.path for entry in inner if not entry.is_symlink()]  # a link may lead to a folder above it
        left_out["images without a line in labels.csv"] += unlabelled
        report_left_out(folder, left_out)
        parts[part] = list(rows), np.array(list(rows.values()))
    return names, parts


def standardise(labels: Mapping[str, NDArray], names: tuple[str, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sets the labels of each part to (label − mean) / deviation in place; returns the means and the deviations."""
    train = labels["train"]
    for name, low, high in zip(names, train.min(0), train.max(0), strict=True):
        if low == high:
            raise ValueError(f"{printable(name)} must vary between training images, got only {low}; remove the column")
    mean, deviation = train.mean(0), train.std(0)
    for of_part in labels.values():
        of_part[:] = (of_part - mean) / deviation
    return tuple(mean.tolist()), tuple(deviation.tolist())


def read_labels(folder: Path, task: Task) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """Returns the names in the header of folder/labels.csv, and path → one number per name, sorted by path.

    The file is UTF-8 text with the header `file,NAME,NAME,...` and one line per image: its path below the folder, and
    one number per name. Empty lines are ignored.

    Args:
        folder: the folder of the file and of its images.
        task: "tags", whose numbers are 0 or 1, or "values".

    Raises:
        ValueError: a line is not as expected, or it names no file in the folder or a file for the second time.
        FileNotFoundError: the file is missing.
    """
    table, rows = folder / LABELS, dict[str, list[float]]()
    if not table.is_file():
        expected = "a file with the header file,NAME,NAME,... and per image a line with its path and its numbers"
        raise FileNotFoundError(f"{printable(table)} must be {expected}, got none; write it or choose task classes")
    lines = _lines(table)
    where, header = next(lines, (printable(table), []))
    names = tuple(header[1:])
    if header[:1] != ["file"] or not names or len({"", *names}) < len(header):
        raise ValueError(f"{where} must be the header file,NAME,NAME,... with different names, got {header}")
    for where, row in lines:
        if len(row) != len(header):
            raise ValueError(f"{where} must have {len(header)} cells as the header, got {len(row)}")
        path = Path(row[0])
        file = os.path.join(folder, path)
        if path.anchor or ".." in path.parts or not os.path.isfile(file):
            raise ValueError(f"{where}: file must be the path of an image in {printable(folder)}, got {row[0]!r}")
        if file in rows:
            raise ValueError(f"{where}: file must be another one in each line, got {row[0]!r} again; remove one line")
        rows[file] = _numbers(where, names, row[1:], task)
    if not rows:
        raise ValueError(f"{printable(table)} must have a line per image, got only the header")
    return names, dict(sorted(rows.items()))


def _lines(table: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the place and the cells of each line that is not empty."""
    with table.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{printable(table)}, line {number}"
            try:
                (row,) = csv.reader([line.decode("utf-8-sig")], strict=True)
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{where} must be comma-separated UTF-8 text, got {error}; save it as such") from error
            if row:
                yield where, row


def _numbers(where: str, names: Sequence[str], cells: list[str], task: Task) -> list[float]:
    numbers = []
    for name, cell in zip(names, cells, strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = float("nan")
        if not (number in (0, 1) if task == "tags" else abs(number) < VALUE_LIMIT):
            expected = "0 or 1" if task == "tags" else f"a number from {-VALUE_LIMIT} to {VALUE_LIMIT}"
            raise ValueError(f"{where}: {printable(name)} must be {expected}, got {cell!r}")
        numbers.append(number)
    return numbers
