"""How `make docs` builds the pages: Sphinx, pages in Markdown, the API from the docstrings."""

import dataclasses
import functools
import re
import shutil
import types
from pathlib import Path

import flax.linen
import jupytext

import lowcost

DOCS = Path(__file__).parent
ROOT = DOCS.parent

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

default_role = "py:obj"  # a name in single backticks is a link where there is something to link to
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_use_param = napoleon_use_rtype = False  # one line may describe several arguments
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 160
python_use_unqualified_type_names = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has executed them
nb_output_stderr = "remove"
nb_merge_streams = True


def bring_notebooks() -> None:
    """Into docs/notebooks: those that `make notebooks` executed; of the others the text."""
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
    """Into docs/results: the report, its pictures and figures."""
    shutil.rmtree(DOCS / "results", ignore_errors=True)
    (DOCS / "results").mkdir()
    for source in (ROOT / "experiments" / "results").iterdir():
        if source.suffix in {".png", ".jsonl"} or source.name == "README.md":
            shutil.copy(source, DOCS / "results" / source.name.replace("README", "index"))


def link_here(app, docname, source):
    """Links that are meant for readers of the checkout: a page of results is a section of the report here."""
    text = re.sub(r"\]\(\.\./experiments/results/\w+\.md\)", "](results/index.md)", source[0])
    source[0] = re.sub(r"\]\(\.\./notebooks/(\w+)\.py\)", r"](notebooks/\1.ipynb)", text)


def escape(app, what, name, obj, options, lines):
    """|λ|² and [*grid, C] as they stand: outside of code * and | are no markup in our docstrings."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if ">>>" not in text and not (i and paragraphs[i - 1].endswith("::")):
            parts = re.split(r"(`+[^`]*`+)", text)
            paragraphs[i] = "".join(part if part[:1] == "`" else re.sub(r"([*|])", r"\\\1", part) for part in parts)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def module_signature(app, what, name, obj, options, signature, returns):
    """Of a Flax module its own fields; a default that is no number or word is left to the text."""
    if what == "class" and issubclass(obj, flax.linen.Module):
        fields = [x for x in dataclasses.fields(obj) if x.name not in ("parent", "name")]
        simple = (int, float, str, type(None))
        said = {x.name: f"={x.default!r}" if isinstance(x.default, simple) else "=..." for x in fields}
        said |= {x.name: "" for x in fields if x.default is dataclasses.MISSING}
        return "(" + ", ".join(f"{key}{default}" for key, default in said.items()) + ")", None
    return None


def skip_fields(app, what, name, obj, skip, options):
    """Fields of classes stand in the class's own text."""
    methods = (types.FunctionType, property, functools.cached_property, classmethod, staticmethod)
    return skip or (what == "class" and not isinstance(obj, methods))


def setup(app):
    """Sphinx's hook."""
    bring_notebooks()
    bring_results()
    app.connect("source-read", link_here)
    app.connect("autodoc-process-signature", module_signature)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
