"""What the README and the notebooks show works as printed."""

import dataclasses
import importlib
import operator
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tyro

ROOT = Path(__file__).parents[1]


def test_readme_examples(capsys):
    """The library, the network, the layers, and its deployment, one after the other, on random images."""
    pages = (ROOT / "README.md", ROOT / "docs/deploy.md")
    examples = [x for page in pages for x in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    names, outputs = {}, []
    for example in examples:
        example = re.sub(r"(\w+)\.(init|apply)\(", r"jax.jit(\1.\2)(", example)  # compile once
        exec(example, names)
        outputs.append(capsys.readouterr().out)
        names["images"] = jax.random.uniform(jax.random.key(0), (2, 12, 12, 3))
    assert 0 < float(outputs[0]) < 1
    assert "classifier" in outputs[1]
    assert len(outputs) == 4
    assert names["model"].graph.input[0].name == "images"
    assert names["logits"].shape == (2, 10)
    assert names["answer"].error.shape == (2,)
    assert set(names["params"]["conv"]) == {"stencil", "matrix", "bias"}


def commands():
    """(program, arguments) of every line that the pages have one type."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
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
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
