"""Every public name says what it computes, of which shapes, what it refuses and where it comes from."""

import doctest
import importlib
import inspect
import pkgutil
import re
from functools import partial

import jax
import pytest

import lowcost

MATHEMATICS = (
    *("lowcost", "lowcost.analysis", "lowcost.convert", "lowcost.cost", "lowcost.time_stepping", "lowcost.plots"),
    *("lowcost.nn", "lowcost.nn.initializers", "lowcost.deploy", "lowcost.deploy.operations"),
)
ENGINEERING = (
    *("lowcost.data", "lowcost.train.state", "lowcost.train.step", "lowcost.train.loop"),
    *("lowcost.train.checkpoint", "lowcost.train.mesh", "lowcost.train.processes"),
)
INHERITS = re.compile(r"\b[Aa]s (in |of )?(every layer here|`\w+`)")


def public(name):
    """What a module offers: what `__all__` lists, or what it defines itself without an underscore."""
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        mine = key in module.__all__ if hasattr(module, "__all__") else getattr(value, "__module__", "") == name
        if mine and not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield pytest.param(value, id=f"{name}.{key}")


def parameters(value):
    """Names of what a function takes, or of a class's fields."""
    if inspect.isclass(value):
        own = [name for base in value.__mro__[:-1] for name in vars(base).get("__annotations__", {})]
        return [name for name in own if not name.startswith("_") and name not in ("parent", "name", "scope")]
    return list(inspect.signature(value).parameters)


@pytest.mark.parametrize("value", [x for name in (*MATHEMATICS, *ENGINEERING) for x in public(name)])
def test_public_names_are_documented(value):
    text = inspect.getdoc(value) or ""
    assert text, "no docstring"
    inherits = INHERITS.search(text)
    unnamed = [x for x in parameters(value) if not re.search(rf"(?<![\w]){re.escape(x)}(?![\w])", text)]
    assert not unnamed or inherits, f"not described: {unnamed}"
    if inspect.isfunction(value):
        source = inspect.getsource(value)
        annotations = [x.annotation for x in inspect.signature(value).parameters.values()]
        if jax.Array in annotations:
            assert "[" in text or re.search("shape|scalar", text) or inherits, "no shapes"
        if re.search(r"^\s+(raise |check_)", source, re.MULTILINE):
            assert "Raises" in text, "no errors"
        if "return " in source and len(text.splitlines()) > 1:
            assert "Returns" in text or "→" in text or re.match(r"[^\n]*[=:(]", text), "no result"


@pytest.mark.parametrize("value", [x for name in MATHEMATICS for x in public(name)])
def test_mathematics_has_its_formula_and_its_source(value):
    """The first sentence of what computes something has the formula; the docstring, or the module's, the source."""
    text = inspect.getdoc(value)
    if inspect.isfunction(value) or "__call__" in vars(value):
        first = text.split("\n\n")[0]
        assert re.search(r"[=↦→·λθΣΠ|‖²ᵀ⁻/(_]|\dx\d", first), f"no formula: {first}"
    module = importlib.import_module(value.__module__).__doc__
    assert re.search(r"\bEqs?\.|Section|Table|Figure", text + module) or INHERITS.search(text), "no source"


@pytest.mark.parametrize("name", [x.name for x in pkgutil.walk_packages(lowcost.__path__, "lowcost.")])
def test_examples_in_docstrings(name):
    with jax.enable_x64(False):
        result = doctest.testmod(importlib.import_module(name))
    assert not result.failed


def test_examples_are_there():
    """Doctests that nobody finds would pass."""
    finder = doctest.DocTestFinder()
    modules = map(partial(getattr, lowcost), ("analysis", "convert", "cost"))
    assert all(any(test.examples for test in finder.find(module)) for module in modules)
