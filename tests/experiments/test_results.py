"""Every page of results shows the committed figures, and the index links every page."""

import re
from pathlib import Path

import pytest
from faults import table as faults

from experiments import ablation, deploy, depth, figure1, robustness, stability, table1, throughput
from experiments.common import table2_page
from experiments.common.files import read_rows
from experiments.common.tables import source

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
PAGES = {
    **{module.__name__.rpartition(".")[2]: module for module in (ablation, deploy, depth, figure1, robustness)},
    **{module.__name__.rpartition(".")[2]: module for module in (stability, table1, throughput)},
    "table2": table2_page,
    "faults": faults,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_rendered_from_its_figures(name):
    assert (RESULTS / f"{name}.md").read_text("utf-8") == PAGES[name].markdown(read_rows(RESULTS / f"{name}.jsonl"))


def test_the_index_links_every_page():
    linked = re.findall(r"^\| \[\w+(?: \d)?\]\((\w+)\.md\)", (RESULTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(linked) == sorted(PAGES)
    assert {path.stem for path in RESULTS.glob("*.md")} - {"README"} == set(PAGES)
    assert {path.stem for path in RESULTS.glob("*.jsonl")} == set(PAGES)


def test_the_source_of_figures_names_each_device_and_commit_once():
    rows = [{"device": "2 x cpu", "commit": "b"}, {"device": "2 x cpu", "commit": "a"}, {"commit": None}]
    assert source(rows, "x") == "Figures: [x.jsonl](x.jsonl), measured on 2 x cpu at commit a and b."
    assert source([{}], "x") == "Figures: [x.jsonl](x.jsonl)."
