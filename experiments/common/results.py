"""Writes what a program measures: rows of figures, the page and the plot that show them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.common.config import shown
from experiments.common.files import write_page, write_rows
from experiments.common.tables import Row


class Results:
    """The rows that a program measures, and its files OUT.jsonl, OUT.md and, if it draws, OUT.png.

    Args:
        config: the program's configuration, with the field `out`; each row holds its flags.
        markdown: (rows, name of the files) → the page.
        draw: draws the rows into a file; None for a program without a plot.
        without: names of fields that the flags leave out.
    """

    def __init__(
        self,
        config: Any,
        markdown: Callable[[list[Row], str], str],
        draw: Callable[[list[Row], Path], None] | None = None,
        *,
        without: Iterable[str] = (),
    ):
        self.rows: list[Row] = []
        self.out, self.markdown, self.draw = config.out, markdown, draw
        self.flags = shown(config, "out", *without)

    def add(self, rows: Iterable[Row], *, complete: bool = True) -> None:
        """Adds rows and writes the files again; only OUT.jsonl as long as the rows are not complete enough to show."""
        self.rows += [{"flags": self.flags, **row} for row in rows]
        write_rows(self.out.with_suffix(".jsonl"), self.rows)
        if complete:
            write_page(self.out.with_suffix(".md"), self.markdown(self.rows, self.out.name))
            if self.draw:
                self.draw(self.rows, self.out.with_suffix(".png"))

    def show(self) -> None:
        """Prints the page, formatted for the terminal, if there are rows."""
        from rich.console import Console
        from rich.markdown import Markdown

        if self.rows:
            Console().print(Markdown(self.markdown(self.rows, self.out.name)))
