"""Importing the package, or its data sets, imports no JAX; every public name is the one that its module defines."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import lowcost
import lowcost.data


@pytest.mark.parametrize("package", [lowcost, lowcost.data], ids=["lowcost", "data"])
def test_lazy_names_are_those_of_the_import_statements(package):
    """The statements are what type checkers read; `lowcost.cost` has functions of the same names."""
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
        assert name in package.__all__
        assert name in dir(package)
    for name in package.__all__:
        getattr(package, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_the_first_use_of_a_name_imports_jax_and_no_earlier():
    code = (
        "import sys, lowcost, lowcost.data; from lowcost.data.decoding import read_picture\n"
        "assert 'jax' not in sys.modules\n"
        "from lowcost import depthwise; from lowcost.data import cutout; import lowcost.cost\n"
        "assert 'jax' in sys.modules\n"
        "assert lowcost.depthwise is depthwise is not lowcost.cost.depthwise"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
