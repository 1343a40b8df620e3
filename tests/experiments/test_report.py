"""The report is the pages beside it, put together."""

from pathlib import Path

from experiments import report

RESULTS = Path("experiments/results")


def test_pages_are_put_together(tmp_path):
    """Headings go one level down, the figures are named with their device and commit; what is missing is left out."""
    (tmp_path / "table1.md").write_text("# Table 1: cost\n\n## part\n\n| a |\n")
    (tmp_path / "table1.jsonl").write_text('{"device": "2 x cpu", "commit": "abc"}\n{"device": "2 x cpu"}\n')
    (tmp_path / "faults.md").write_text("no heading\n")
    assert report.render(tmp_path) == (
        "# Results\n\nMade by `python -m experiments.report`; not edited by hand.\n\n"
        "- [Table 1: cost](#table-1-cost)\n- [Faults](#faults)\n\n"
        "## Table 1: cost\n\n### part\n\n| a |\n\n"
        "Figures: [table1.jsonl](table1.jsonl); device 2 x cpu, commit abc.\n\n"
        "## Faults\n\nno heading\n"
    )


def test_the_committed_report_is_made_of_the_committed_pages():
    assert (RESULTS / "README.md").read_text() == report.render(RESULTS)


def test_every_page_is_in_it():
    """A page that a program writes is in the report's order."""
    assert {path.stem for path in RESULTS.glob("*.md")} - {"README"} <= set(report.PAGES)
