"""The commands, code, links and figures of the README, the pages and the notebooks are right."""

import dataclasses
import importlib.util
import operator
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax
import jupytext
import nbclient
import nbformat
import numpy as np
import pytest
import tyro

import lowcost

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/api").glob("*.md")))


def script(name):
    """Imports a script of the folder docs."""
    specification = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


api_pages, cover = script("api_pages"), script("cover")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_the_pages(page, capsys, tmp_path, monkeypatch):
    """Runs the code blocks of a page one after the other; a page needs no names from elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: None)  # it would also affect all later tests
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        block = re.sub(r"\b(net)\.(init|apply)\(", r"jax.jit(\1.\2)(", block)  # compile once
        exec(re.sub(r"([Nn]etwork\(.*num_classes=\w+)\)", r"\1, steps_per_block=1)", block), names)
    printed = capsys.readouterr().out
    name = page.relative_to(ROOT).as_posix()
    if name == "README.md":
        assert 0 < float(printed.splitlines()[0]) < 1
        assert "classifier" in printed
        assert names["logits"].shape == (2, 10)
        assert names["stencil"].size + names["matrix"].size == 1_312
    elif name == "docs/deploy.md":
        assert names["model"].graph.input[0].name == "images"
        assert names["answer"].error.shape == (2,)
        np.testing.assert_allclose(names["answers"], names["logits"], atol=1e-4)
        assert names["probabilities"].shape == (2, len(names["classes"])) == (2, 10)
    elif name == "docs/training.md":
        assert names["state"].params["opening"]["stencil"].shape == (5, 5, 3, 32)
        assert names["state"].params["classifier"]["kernel"].shape[1] == 3
    elif name == "docs/own_steps.md":
        assert len(names["report"].layers) == 6
        assert names["cost"].weights == sum(x.size for x in jax.tree.leaves(names["variables"]["params"]))
        assert "Gemm" in {node.op_type for node in names["model"].graph.node}
        assert 0 < names["error"] < 1e-4  # the largest of three networks
    elif name == "docs/nnx.md":
        assert names["losses"][2] < names["losses"][0]
        model, restored, images = names["model"], names["restored"][0], names["images"]
        np.testing.assert_array_equal(model(images), restored(images))
        assert names["report"].lipschitz > 0
    elif name == "docs/api/plots.md":
        assert Path("symbol.png").stat().st_size > 10_000
    else:
        assert not names


def commands():
    """Yields (program, arguments) of every command in the pages' blocks and sentences."""
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        text = page.read_text()
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) + re.findall(r"`(python -m [^`]+)`", text):
            for name, arguments in re.findall(r"-m experiments\.(\w+)(.*)", block):
                yield name, shlex.split(arguments, comments=True)


def test_extras_and_targets_that_pages_name_exist():
    text = "".join(page.read_text() for page in (*PAGES, ROOT / "CONTRIBUTING.md", *ROOT.glob("experiments/launch/*")))
    extras = {x for some in re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", text) for x in some.split(",")}
    assert {"cuda", "experiments", "export"} <= extras
    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    targets = set(re.findall(r"(?:`|\$ )make (\w+)", text))
    assert {"train", "docs", "notebooks", "test"} <= targets
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda page: page.stem)
def test_api_pages_are_up_to_date(page):
    """`make format` leaves the pages unchanged."""
    assert page.read_text() == api_pages.with_tables(page.read_text()), "run `make format`"


def test_every_public_function_is_on_its_page():
    """The operators are on one page, and `load` and `save` on that of deployment."""
    functions = {name for name in lowcost.__all__ if callable(getattr(lowcost, name))}
    kept = {name for name in functions if getattr(lowcost, name).__module__.startswith("lowcost.deploy.")}
    assert kept == {"load", "save"}
    for page, names in (("operators", functions - kept), ("deploy", kept)):
        text = (ROOT / f"docs/api/{page}.md").read_text()
        assert set(re.findall(r'<a id="lowcost\.(\w+)">', text)) == names


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            text = file.read_text()
            headings = [x.lower() for x in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
            slugs = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
            assert anchor in slugs | set(re.findall(r'<a id="([^"]+)">', text)), f"{target}#{anchor}"


@pytest.mark.parametrize(("page", "begin"), [("README.md", "## Results"), ("docs/deploy.md", "## Measured")])
def test_figures_that_pages_quote_are_those_of_the_results(page, begin):
    """Every figure with a unit or a decimal point is on the page of results that its section links to."""
    section = (ROOT / page).read_text().split(begin)[1].split("\n## ")[0]
    sources = re.findall(r"\(((?:\.\./)?experiments/results/\w+\.md)\)", section)
    results = "".join((ROOT / page).parent.joinpath(source).read_text() for source in sources)
    figures = re.findall(r"\d+\.\d+(?: %)?|\d{3} kB|\d,\d{3}|\d{3},\d{3}", section)
    assert len(figures) >= 6
    for figure in figures:
        assert figure in results.replace("2.1e-08", "2.1·10⁻⁸"), figure


@pytest.mark.parametrize(("name", "arguments"), commands(), ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_programs_take_the_flags_that_pages_show(name, arguments):
    module = importlib.import_module(f"experiments.{name}")
    configs = {key: x for key, x in vars(module).items() if key.endswith("Config") and dataclasses.is_dataclass(x)}
    own = [x for x in configs.values() if x.__module__ == module.__name__] or list(configs.values())
    assert len(own) == 1
    assert tyro.cli(own[0], args=arguments)


def test_readme_names_only_what_exists():
    """Every name in the table of equations is public."""
    import lowcost.nn

    readme = (ROOT / "README.md").read_text()
    table = readme.split("| equation in the paper | function | Flax module |")[1].split("\n\n")[0].replace("\\|", "/")
    for row in table.strip().splitlines()[1:]:
        for name in re.findall(r"`(?:lowcost\.)?([A-Za-z_.]+)`", "|".join(row.split("|")[2:])):
            assert operator.attrgetter(name)(lowcost), name


SHORT = {
    "signals": [("EPOCHS, BATCH = 200,", "EPOCHS, BATCH = 20,"), ("20 * batches", "2 * batches")],
    "trained_network": [
        ("EPOCHS, BATCH = 8,", "EPOCHS, BATCH = 1,"),
        ("architecture, (16, 32),", "architecture, (4, 8),"),
        ("steps_per_block=2", "steps_per_block=1"),
        ('["block1_step2"]', '["block1_step1"]'),
        ("(4, size, size, 1)", "(1, size, size, 1)"),
    ],
    "replace_convolutions": [
        ("epochs=6)", "epochs=1)"),
        ("epochs=2)", "epochs=1)"),
        ("features: int = 16", "features: int = 4"),
        ("range(6)", "range(2)"),
    ],
    "symbols": [("grid, h = (16, 16), 1.0", "grid, h = (8, 8), 1.0")],
    "patterns": [
        ("size, D = 128,", "size, D = 32,"),
        ("for _ in range(40):", "for _ in range(4):"),
        ("(0.95, 1.05, 1.5, 3.0, 8.0, 100.0)", "(0.95, 100.0)"),
    ],
}
"""Name of a notebook → replacements that shorten it; `make notebooks` runs the full notebook."""


@pytest.fixture(scope="module")
def kernel():
    """Starts one kernel for all notebooks, because starting one takes as long as executing one."""
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=120)
    with client.setup_kernel():
        yield client


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_run(path, kernel):
    """Executes a notebook as a kernel does. It is short and imports only the library and what it is built on."""
    text = path.read_text()
    for long, short in SHORT.get(path.stem, ()):
        assert long in text
        text = text.replace(long, short)
    notebook = jupytext.reads(text, fmt="py:percent")
    assert len(notebook.cells) <= 15
    modules = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert modules <= {"lowcost", "matplotlib", "jax", "flax", "optax", "functools", "time", "aeon"}
    if "aeon" in modules:
        pytest.importorskip("aeon")
    begin = time.monotonic()
    kernel.nb = notebook
    kernel.reset_execution_trackers()
    notebook.cells.append(nbformat.v4.new_code_cell("%reset -f"))  # a notebook needs no names from elsewhere
    for i, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, i)
    assert time.monotonic() - begin < 180  # half a minute on idle cores, but other tests run at the same time
    plots = [x for cell in notebook.cells for x in cell.get("outputs", ()) if "image/png" in x.get("data", {})]
    assert plots or "matplotlib" not in modules


def test_pages_build(tmp_path):
    """Builds the pages as `make docs` does, without executing the notebooks; warnings are errors."""
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "runs", "tests", "*.ipynb", "_build"))
    docs = tmp_path / "copy/docs"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "1", docs, tmp_path / "html"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    mathematics = (tmp_path / "html/mathematics.html").read_text()
    for name in ("depthwise", "circulant", "imex_euler", "nn.ImplicitRDStep", "analysis.green_function"):
        assert f'.html#lowcost.{name}"' in mathematics, f"{name} is not linked"
    for page in (tmp_path / "html/api").glob("*.html"):
        assert not re.search(r"\\[*|]", page.read_text()), f"{page.name} shows a backslash"


def test_cover_is_drawn(tmp_path):
    cover.draw(tmp_path / "cover.png", steps=2)
    assert (tmp_path / "cover.png").stat().st_size > 10_000
