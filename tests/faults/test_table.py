"""The committed table of faults and the row that each test adds."""

import json

from faults.subject import ROOT
from faults.table import page


def test_the_committed_table_is_that_of_its_figures():
    results = ROOT / "experiments" / "results"
    rows = [json.loads(line) for line in (results / "faults.jsonl").read_text().splitlines()]
    assert (results / "faults.md").read_text() == page(rows)
    assert all(row["fine"] for row in rows)
