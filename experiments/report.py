"""All results on one page: writes experiments/results/README.md from the pages that lie beside it.

Every page there is made by the program that it names; this one only puts them together.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from experiments.files import read_rows

PAGES = (
    *("table1", "table2", "ablation", "throughput", "figure1"),
    *("depth", "stability", "robustness", "deploy", "faults"),
)
"""In the order of the report; what has no page yet is left out."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the results are."""

    directory: Path = Path("experiments/results")
    """Folder of the pages, and of the report."""


def main(config: Config) -> None:
    """Write README.md."""
    (config.directory / "README.md").write_text(render(config.directory))
    print(config.directory / "README.md")


def render(directory: Path) -> str:
    """The report: contents, then each page with its headings one level down, and where its figures were measured."""
    pages = {name: path.read_text() for name in PAGES if (path := directory / f"{name}.md").exists()}
    sections = [_section(name, text, directory / f"{name}.jsonl") for name, text in pages.items()]
    contents = "\n".join(f"- [{title}](#{_anchor(title)})" for title, _ in sections)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return f"# Results\n\nMade by `python -m experiments.report`; not edited by hand.\n\n{contents}\n\n{body}\n"


def _section(name: str, text: str, figures: Path) -> tuple[str, str]:
    lines = text.strip().splitlines()
    title = lines.pop(0).removeprefix("# ") if lines[0].startswith("# ") else name.capitalize()
    lines = [f"#{line}" if line.startswith("#") else line for line in lines]
    if figures.exists():
        rows = read_rows(figures)
        told = {key: sorted({str(row[key]) for row in rows if row.get(key)}) for key in ("device", "commit")}
        source = ", ".join(f"{key} {' and '.join(values)}" for key, values in told.items() if values)
        lines += ["", f"Figures: [{figures.name}]({figures.name})" + (f"; {source}." if source else ".")]
    return title, "\n".join(lines).strip()


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog="python -m experiments.report", description=__doc__))
    except OSError as error:
        sys.exit(f"error: {error}")
