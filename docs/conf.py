"""Configures Sphinx for `make docs`: the pages in Markdown, the API from the docstrings."""

import dataclasses
import functools
import re
import shutil
import sys
import types
from pathlib import Path

import flax.linen
import jupytext

import lowcost

DOCS = Path(__file__).parent
ROOT = DOCS.parent

sys.path.insert(0, str(DOCS))
import api_pages  # noqa: E402

project, version, author = "lowcost", lowcost.__version__, "the authors of lowcost"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lowcost {version}"
html_static_path = ["_static"]
html_css_files = ["lowcost.css"]
html_show_copyright = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "monokai"

default_role = "py:obj"  # a name in single backticks links to its documentation, if it has any
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_use_param = napoleon_use_rtype = False  # one line may describe several arguments
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 160
python_use_unqualified_type_names = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` executes them
nb_output_stderr = "remove"
nb_merge_streams = True


def bring_notebooks() -> None:
    """Copies the executed notebooks to docs/notebooks, and the text of those that are not executed."""
    shutil.rmtree(DOCS / "notebooks", ignore_errors=True)
    (DOCS / "notebooks").mkdir()
    for source in (ROOT / "notebooks").glob("*.py"):
        executed, page = source.with_suffix(".ipynb"), DOCS / "notebooks" / f"{source.stem}.ipynb"
        if executed.exists():
            shutil.copy(executed, page)
        else:
            notebook = jupytext.read(source)
            notebook.metadata["language_info"] = {"name": "python"}
            jupytext.write(notebook, page)


def bring_results() -> None:
    """Copies the pages of results to docs/results, with their plots and data; the index is their README."""
    results = DOCS / "results"
    shutil.rmtree(results, ignore_errors=True)
    shutil.copytree(ROOT / "experiments" / "results", results)
    (results / "README.md").rename(results / "index.md")
    pages = sorted(path.stem for path in results.glob("*.md") if path.stem != "index")
    with (results / "index.md").open("a") as index:
        index.write("\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```", ""]))


def adapt_page(app, docname, source):
    """Turns links for readers of the checkout into links between pages, and tables of names into the full API."""
    text = source[0]
    for pattern, replacement in LINKS.items():
        text = re.sub(pattern, replacement, text)
    source[0] = api_pages.with_directives(text)


LINKS = {
    r"\[(`\w+`)\]\(\.\./\w+\.py\)": r"\1",  # programs, which the index of results links to
    r"\]\(\.\./experiments/results/README\.md": r"](results/index.md",
    r"\]\(\.\./experiments/results/(\w+\.(?:md|png))": r"](results/\1",
    r"\]\(\.\./notebooks/(\w+)\.py": r"](notebooks/\1.ipynb",
    r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md": lambda found: f"]({found[1].lower()}.md",
    r"\]\((?:\.\./)?api/\w+\.md#lowcost\.": r"](#lowcost.",
}


def escape(app, what, name, obj, options, lines):
    """Escapes * and | outside of code, because |λ|² and [*grid, C] are no markup in our docstrings."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if ">>>" not in text and not (i and paragraphs[i - 1].endswith("::")):
            parts = re.split(r"(`+[^`]*`+)", text)
            paragraphs[i] = "".join(part if part[:1] == "`" else re.sub(r"([*|])", r"\\\1", part) for part in parts)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def module_signature(app, what, name, obj, options, signature, returns):
    """Shows only the own fields of a Flax module, and only defaults that are numbers, words or None."""
    if what == "class" and issubclass(obj, flax.linen.Module):
        fields = [x for x in dataclasses.fields(obj) if x.name not in ("parent", "name")]
        simple = (int, float, str, type(None))
        defaults = {x.name: f"={x.default!r}" if isinstance(x.default, simple) else "=..." for x in fields}
        defaults |= {x.name: "" for x in fields if x.default is dataclasses.MISSING}
        return "(" + ", ".join(f"{name}{default}" for name, default in defaults.items()) + ")", None
    return None


def skip_fields(app, what, name, obj, skip, options):
    """Skips the fields of classes, which the class's own docstring describes."""
    methods = (types.FunctionType, property, functools.cached_property, classmethod, staticmethod)
    return skip or (what == "class" and not isinstance(obj, methods))


def setup(app):
    """Connects the functions above to Sphinx."""
    bring_notebooks()
    bring_results()
    app.connect("source-read", adapt_page)
    app.connect("autodoc-process-signature", module_signature)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
