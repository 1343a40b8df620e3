"""Writes the tables of docs/api/*.md: `make format`.

Each table stands between two comments, `<!-- api MODULE -->` or `<!-- api MODULE: NAME NAME ... -->`, and
`<!-- end -->`. It lists the public functions and classes with their formula and a link to their source. A reader of the
checkout sees the table; in the built pages Sphinx puts the full docstrings in its place.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

PAGES = Path(__file__).parent / "api"
BLOCK = re.compile(r"<!-- api ([\w.]+)(?:: ([\w ]+))? -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Rewrites the pages."""
    for page in PAGES.glob("*.md"):
        page.write_text(with_tables(page.read_text()))


def with_tables(text: str) -> str:
    """Returns the page with tables made from the docstrings."""
    return BLOCK.sub(_table, text)


def with_directives(text: str) -> str:
    """Returns the page with a directive of Sphinx's autodoc in place of each table."""
    return BLOCK.sub(_directive, text)


def _table(block: re.Match[str]) -> str:
    opening = block[0].splitlines()[0]
    rows = [f"| {_link(block[1], name, value)} | {_summary(value)} |" for name, value in _public(block[1], block[2])]
    return "\n".join([opening, "", "| name | what it is |", "|:--|:--|", *rows, "", "<!-- end -->"])


def _directive(block: re.Match[str]) -> str:
    if block[2] is None:
        package = hasattr(importlib.import_module(block[1]), "__path__")
        lines = [f".. automodule:: {block[1]}", *["   :imported-members:"] * package]
    else:
        lines = []
        for name, value in _public(block[1], block[2]):
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            lines += [f".. {kind}:: {block[1]}.{name}", *["   :no-members:"] * inspect.isclass(value)]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _public(module: str, names: str | None) -> Iterator[tuple[str, type]]:
    """Yields the given names of a module, or all its public functions and classes in the order of their source."""
    content = importlib.import_module(module)
    if names is not None:
        yield from ((name, getattr(content, name)) for name in names.split())
        return
    for name in getattr(content, "__all__", None) or vars(content):
        value = getattr(content, name)
        own = hasattr(content, "__all__") or getattr(value, "__module__", None) == module
        if own and name[0] != "_" and (inspect.isfunction(value) or inspect.isclass(value)):
            yield name, value


def _link(module: str, name: str, value: type) -> str:
    path = value.__module__.replace(".", "/")
    return f'<a id="{module}.{name}"></a>[`{name}`](../../{path}.py)'


def _summary(value: type) -> str:
    """Returns the first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<!Eq)(?<!Eqs)(?<!e\.g)\.\s+(?=[A-Z`(])", paragraph)[0].rstrip(".:")
    return re.sub(r"[*|]", r"\\\g<0>", sentence)


if __name__ == "__main__":
    main()
