"""All results on one page: writes experiments/results/README.md from the pages that lie beside it.

Every page there is made by the program that it names; this one only puts them together.
"""

import dataclasses
from pathlib import Path

from experiments.common import entry
from experiments.common.files import read_rows, write_page
from lowcost.terminal import printable

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
    write_page(config.directory / "README.md", render(config.directory))
    print(printable(config.directory / "README.md"))


def render(directory: Path) -> str:
    """The report: contents, then each page with its headings one level down, and where its figures were measured."""
    pages = {name: path.read_text("utf-8") for name in PAGES if (path := directory / f"{name}.md").exists()}
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
    entry.run(main, Config)
