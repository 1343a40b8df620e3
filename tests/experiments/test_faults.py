"""Faults that really happen, to processes as users start them; `make faults` does more of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

from faults import faults

ROOT = Path(__file__).parents[2]


def test_every_fault_ends_in_the_same_numbers_or_a_clear_error(tmp_path):
    command = [sys.executable, "-m", "faults.faults", "--short", "--out", str(tmp_path / "faults")]
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "faults.md").read_text()
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) == table.count("\n| ") >= 7
    for fault in (
        "kill -9",
        "SIGTERM",
        "SIGINT",
        "all checkpoints damaged",
        "read-only",
        "disk full",
        "processes",
        "two runs",
    ):
        assert fault in table


def test_the_committed_table_is_that_of_its_figures():
    results = ROOT / "experiments" / "results"
    rows = [faults.Row(**json.loads(line)) for line in (results / "faults.jsonl").read_text().splitlines()]
    assert (results / "faults.md").read_text() == faults.markdown(rows)
    assert all(row.fine for row in rows)
