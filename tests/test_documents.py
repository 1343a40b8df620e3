"""What the README and the notebooks show works as printed."""

import dataclasses
import importlib
import itertools
import operator
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import nbclient
import pytest
import tyro

ROOT = Path(__file__).parents[1]


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_examples_of_the_pages(capsys):
    """The library, the network, the layers, deployment, training, one after the other, on random images."""
    found = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
    assert [len(found[name]) for name in ("README.md", "deploy.md", "index.md", "training.md")] == [3, 1, 1, 1]
    names, outputs = {}, []
    for example in itertools.chain(*found.values()):
        example = re.sub(r"(\w+)\.(init|apply)\(", r"jax.jit(\1.\2)(", example)  # compile once
        exec(example, names)
        outputs.append(capsys.readouterr().out)
        names["images"] = jax.random.uniform(jax.random.key(0), (2, 12, 12, 3))
    assert 0 < float(outputs[0]) < 1
    assert "classifier" in outputs[1]
    assert names["model"].graph.input[0].name == "images"
    assert names["logits"].shape == (2, 10)
    assert names["answer"].error.shape == (2,)
    assert set(names["params"]["conv"]) == {"stencil", "matrix", "bias"}
    assert names["state"].params["opening"]["stencil"].shape == (5, 5, 3, 32)


def commands():
    """(program, arguments) of every line that the pages have one type."""
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            for name, arguments in re.findall(r"-m experiments\.(\w+)(.*)", block):
                yield name, shlex.split(arguments, comments=True)


@pytest.mark.parametrize(("name", "arguments"), commands(), ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_programs_take_the_flags_that_pages_show(name, arguments):
    module = importlib.import_module(f"experiments.{name}")
    configs = {key: x for key, x in vars(module).items() if key.endswith("Config") and dataclasses.is_dataclass(x)}
    assert tyro.cli(configs.get("Config") or next(iter(configs.values())), args=arguments)


def test_readme_names_only_what_exists():
    """Every name in the table of equations is public, and nothing was left to be filled in."""
    import lowcost.nn

    readme = (ROOT / "README.md").read_text()
    assert "@@" not in readme
    table = readme.split("| paper | function | module |")[1].split("\n\n")[0].replace("\\|", "/")
    for row in table.strip().splitlines()[1:]:
        for name in re.findall(r"`(?:lowcost\.)?([A-Za-z_.]+)`", "|".join(row.split("|")[2:])):
            assert operator.attrgetter(name)(lowcost), name


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_run(path):
    """As a kernel executes them, cell by cell; short, and of nothing but the library and what it is made of."""
    notebook = jupytext.read(path)
    assert len(notebook.cells) <= 15
    modules = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert modules <= {"lowcost", "matplotlib", "jax", "flax", "optax", "functools", "time"}
    nbclient.NotebookClient(notebook, timeout=300).execute()
    pictures = [x for cell in notebook.cells for x in cell.get("outputs", ()) if "image/png" in x.get("data", {})]
    assert pictures or "matplotlib" not in modules


def test_pages_build(tmp_path):
    """`make docs` with the notebooks as they are, not executed; warnings are errors."""
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "runs", "tests", "*.ipynb", "_build"))
    docs = tmp_path / "copy/docs"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "1", docs, tmp_path / "html"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    mathematics = (tmp_path / "html/mathematics.html").read_text()
    for name in ("depthwise", "circulant", "imex_euler", "nn.ImplicitRDStep", "analysis.green_function"):
        assert f'.html#lowcost.{name}"' in mathematics, f"{name} is not linked"
