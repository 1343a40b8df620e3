"""Writes what a program measures: rows of figures, and the page and the plot that show them."""

import dataclasses
import os
import re
import statistics
import string
import subprocess
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.config import shown
from experiments.common.files import read_rows, write_page, write_rows

Row = dict[str, Any]
"""The figures of one measurement, by name."""
Columns = Mapping[str, str | Callable[[Row], str]]
"""Heading → a cell: a format string over the names of a row, or a function of the row."""


@dataclasses.dataclass
class Results:
    """The rows that a program measures, and its files OUT.jsonl, OUT.md and, if it draws, OUT.png.

    Attributes:
        config: the program's configuration, with the field `out`; each row holds its flags.
        markdown: (rows, name of the files) → the page.
        draw: draws the rows into a file; None for a program without a plot.
        without: names of fields that the flags leave out.
        rows: the rows so far.
    """

    config: Any
    markdown: Callable[[list[Row], str], str]
    draw: Callable[[list[Row], Path], None] | None = None
    without: Sequence[str] = ()
    rows: list[Row] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the folder of OUT before anything is measured, which would be lost if it could not be written."""
        folder = self.config.out.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"--out must be in a folder that can be written, got {folder}; choose another --out")

    @property
    def flags(self) -> str:
        """The flags of the program, which each row holds."""
        return shown(self.config, "out", *self.without)

    def resume(self) -> None:
        """Takes over the rows of OUT.jsonl.

        Raises:
            ValueError: other flags measured some of them, which the new rows would replace.
        """
        path = self.config.out.with_suffix(".jsonl")
        self.rows = list(read_rows(path))
        if others := [row.get("flags") for row in self.rows if row.get("flags") != self.flags]:
            problem = (
                f"--out must name files of the same flags, or new ones, got {path} with rows of {others[0] or 'none'}"
            )
            raise ValueError(f"{problem}; choose another --out")

    def add(self, rows: Iterable[Row], *, complete: bool = True) -> None:
        """Adds rows and writes the files again; only OUT.jsonl as long as the rows are not complete enough to show."""
        self.rows += [{"flags": self.flags, **row} for row in rows]
        out = self.config.out
        write_rows(out.with_suffix(".jsonl"), self.rows)
        if complete:
            write_page(out.with_suffix(".md"), self.markdown(self.rows, out.name))
            if self.draw:
                self.draw(self.rows, out.with_suffix(".png"))

    def show(self) -> None:
        """Prints the page, formatted for the terminal, if there are rows."""
        from rich.console import Console
        from rich.markdown import Markdown

        if self.rows:
            Console().print(Markdown(self.markdown(self.rows, self.config.out.name)))


class _Format(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None else super().format_field(value, format_spec)


def filled(template: str, **parts: Any) -> str:
    """Returns the text of experiments/templates/TEMPLATE.md, in which each {name} stands for a part, None for nothing.

    A line `name: | {x} | {y:.2f} |` of a table stands for one line per row of the part `name`.
    """
    lines: list[str] = []
    for line in (Path(__file__).parents[1] / "templates" / f"{template}.md").read_text("utf-8").splitlines():
        of_rows = re.fullmatch(r"(\w+): (\|.*)", line)
        text, rows = (of_rows[2], parts[of_rows[1]]) if of_rows else (line, [parts])
        lines += [_Format().vformat(text, (), row) for row in rows]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], name: str, program: str, **parts: Any) -> str:
    """Returns a page: the template of a program, the command that makes the page again, and `source`.

    Args:
        rows: the figures; the first one holds the flags of the command, if there are any.
        name: of the files, without a suffix.
        program: the program, and its positional arguments.
        parts: what the template shows besides the first row, `name` and `rows`.
    """
    text = filled(program.split()[0], **{**rows[0], "name": name, "rows": rows, **parts})
    command = f"python -m experiments.{program} {rows[0].get('flags', '')}".strip()
    return f"{text}\nMade by `{command}`.\n\n{source(rows, name)}\n"


def table(rows: Sequence[Row], columns: Columns, *, text: int = 1) -> str:
    """Returns a Markdown table, one line per row.

    Args:
        rows: the figures.
        columns: heading → cell.
        text: number of leading columns that hold text, aligned to the left; the others hold numbers.
    """
    cells = [[cell.format(**row) if isinstance(cell, str) else cell(row) for cell in columns.values()] for row in rows]
    alignment = [":--"] * text + ["--:"] * (len(columns) - text)
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns), alignment, *cells])


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Returns the rows with equal keys together, in the order of their first rows."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def spread(numbers: Sequence[float], form: str) -> str:
    """Returns the mean and, of several numbers, their sample standard deviation, in this format."""
    deviation = f" ± {statistics.stdev(numbers):{form}}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):{form}}{deviation}"


def accuracy(row: Row, part: str = "test") -> str:
    """Returns the accuracy of a result in percent, with the standard deviation if there are several seeds."""
    deviation = row[f"{part}_accuracy_std"]
    return f"{100 * row[f'{part}_accuracy']:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}") + " %"


def source(rows: Sequence[Row], name: str) -> str:
    """Returns the last line of a page: where its figures are, and on which devices and at which commits they were made.

    Args:
        rows: the figures.
        name: of the files, without a suffix.
    """
    values = {key: sorted({row[key] for row in rows if row.get(key)}) for key in ("device", "commit")}
    words = {"device": "on", "commit": "at commit"}
    verb = "measured" if values["device"] else "computed"
    origin = " ".join(f"{words[key]} {' and '.join(found)}" for key, found in values.items() if found)
    return f"Figures: [{name}.jsonl]({name}.jsonl)" + (f", {verb} {origin}." if origin else ".")


def provenance() -> dict[str, Any]:
    """Returns the devices, JAX's version and the commit, for a row of results."""
    import jax

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"device": device, "jax_version": jax.__version__, "commit": commit()}


def commit() -> str | None:
    """Returns the commit of the code that runs, with "-dirty" if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        output = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()
