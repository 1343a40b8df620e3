"""Collects the figures of the fault tests and writes them as JSON lines and as a page."""

from pathlib import Path
from typing import Any

import pytest

from experiments.common.files import write_page, write_rows
from experiments.common.results import Columns, table

ROW = "row"
"""Name of the property of a test that holds its fault and its figure."""


TEMPLATE = """# Faults

Each row is a fault that happens to small training runs, in processes as users start them, and what training does. The
runs are killed, their files damaged, their disks filled. *The uninterrupted state* is the final state of a run without
any fault, compared bit for bit.

{rows}

Made by `make faults`.
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the page."""
    columns: Columns = {
        "fault": "{fault}",
        "figure": lambda row: f"{'' if row['fine'] else '**wrong:** '}{row['figure']}",
    }
    return TEMPLATE.format(rows=table(rows, columns, text=2))


def row_of(report: pytest.TestReport) -> dict[str, Any] | None:
    """Returns the row of a test that has run: what it recorded, or its error if it failed before; None if skipped."""
    fault, figure = dict(report.user_properties).get(ROW, (None, None))
    if fault is None and report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        fault, figure = report.location[2], str(crash.message if crash else report.longrepr).splitlines()[0]
    return None if fault is None else {"fault": fault, "figure": figure, "fine": not report.failed}


class Table:
    """Collects, as a plugin of pytest, one row per fault test in the order in which they ran.

    Args:
        out: the rows are written to OUT.jsonl and OUT.md unless the session was interrupted; None writes no file.
    """

    def __init__(self, out: Path | None):
        self.out = out
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds the row of a test."""
        if report.when == "call" and (row := row_of(report)):
            self.rows.append(row)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Writes the files."""
        if self.out and self.rows and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            write_rows(self.out.with_suffix(".jsonl"), self.rows)
            write_page(self.out.with_suffix(".md"), markdown(self.rows))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the rows."""
        terminalreporter.section("faults")
        for row in self.rows:
            terminalreporter.line(f"{'fine' if row['fine'] else 'WRONG'}: {row['fault']}: {row['figure']}")
