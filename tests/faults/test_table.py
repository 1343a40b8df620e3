"""Tests the committed table of faults, and the row that each kind of test adds."""

import json

import pytest
from faults.subject import ROOT
from faults.table import ROW, Table


def test_the_committed_faults_are_survived():
    rows = (ROOT / "experiments" / "results" / "faults.jsonl").read_text().splitlines()
    assert all(json.loads(row)["fine"] for row in rows)


def test_a_failed_test_is_a_wrong_row_and_the_others_are_written(tmp_path):
    """A row holds what the test recorded, or its error; a skipped test has a row only if it recorded one."""
    table = Table(tmp_path / "faults")
    for name, outcome, row in (
        ("right", "passed", [(ROW, ("kill", "1 of 1"))]),
        ("wrong", "failed", [(ROW, ("freeze", "0 of 1"))]),
        ("error", "failed", []),
        ("not_tried", "skipped", [(ROW, ("mount", "not tried"))]),
        ("skipped", "skipped", []),
    ):
        where = ("test.py", 1, name)
        table.pytest_runtest_logreport(
            pytest.TestReport(name, where, {}, outcome, "OSError: x", "call", user_properties=row)
        )
    table.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert not list(tmp_path.iterdir())
    table.pytest_sessionfinish(pytest.ExitCode.TESTS_FAILED)
    lines = (tmp_path / "faults.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| ")][2:] == [
        "| kill | 1 of 1 |",
        "| freeze | **wrong:** 0 of 1 |",
        "| error | **wrong:** OSError: x |",
        "| mount | not tried |",
    ]
    rows = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [row["fine"] for row in rows] == [True, False, False, True]
