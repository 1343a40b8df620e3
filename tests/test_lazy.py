"""Importing the package, or its data sets, imports no JAX; every public name is the one that its module defines."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import lowcost
import lowcost.data

SUBMODULES = ("analysis", "convert", "cost", "data", "deploy", "nn", "plots", "train")


@pytest.mark.parametrize("package", [lowcost, lowcost.data], ids=["lowcost", "data"])
def test_lazy_names_are_those_of_the_import_statements(package):
    """Type checkers read the import statements; `lowcost.cost` has functions of the same names."""
    (block,) = (
        node
        for node in ast.parse(inspect.getsource(package)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    found = {}
    for statement in block.body:
        for name in (alias.name for alias in statement.names):
            found[name] = getattr(importlib.import_module(statement.module), name)
    assert found
    for name, value in found.items():
        assert getattr(package, name) is value
        assert name in dir(package)
        assert name in package.__all__ or inspect.ismodule(value)
    for name in package.__all__:
        getattr(package, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def in_a_fresh_interpreter(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_use_of_a_name_imports_jax_and_no_earlier():
    in_a_fresh_interpreter(
        "import sys, lowcost, lowcost.data; from lowcost.data.decoding import read_image\n"
        "assert 'jax' not in sys.modules\n"
        "from lowcost import depthwise; from lowcost.data import cutout; import lowcost.cost\n"
        "assert 'jax' in sys.modules\n"
        "assert lowcost.depthwise is depthwise is not lowcost.cost.depthwise"
    )


def test_operators_import_no_flax_and_submodules_are_imported_at_their_first_use():
    in_a_fresh_interpreter(
        f"import sys, lowcost; submodules = {SUBMODULES}\n"
        "assert set(submodules) <= set(dir(lowcost))\n"
        "assert not any(f'lowcost.{name}' in sys.modules for name in submodules)\n"
        "lowcost.depthwise, lowcost.analysis, lowcost.convert, lowcost.cost\n"
        "heavy = {'flax', 'optax', 'orbax', 'tensorflow_datasets', 'PIL', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert [getattr(lowcost, name) for name in submodules] == [sys.modules[f'lowcost.{x}'] for x in submodules]"
    )


def test_without_matplotlib_the_package_can_be_inspected():
    in_a_fresh_interpreter(
        "import sys; sys.modules['matplotlib'] = None\n"
        "import inspect, lowcost\n"
        "members = dict(inspect.getmembers(lowcost))\n"
        "assert 'analysis' in members and 'plots' not in members\n"
        "try: from lowcost import plots\n"
        "except ImportError as error: assert \"pip install '.[plots]'\" in str(error)\n"
        "else: raise AssertionError"
    )
