"""Every public name documents what it computes, the shapes, the errors, and the source in the paper."""

import doctest
import importlib
import inspect
import pkgutil
import re

import jax
import pytest

import lowcost
import lowcost.nn

MATHEMATICS = (
    *("lowcost", "lowcost.analysis", "lowcost.convert", "lowcost.cost", "lowcost.time_stepping", "lowcost.plots"),
    *("lowcost.nn", "lowcost.nn.initializers", "lowcost.nn.filters", "lowcost.nn.operations", "lowcost.deploy"),
)
ENGINEERING = (
    *("lowcost.data", "lowcost.train.state", "lowcost.train.step", "lowcost.train.loop"),
    *("lowcost.train.checkpoint", "lowcost.train.calibration", "lowcost.train.mesh", "lowcost.train.processes"),
)
FORMULA = re.compile(r"[=↦→·λθΣΠ|‖²ᵀ⁻≤∘⁺]|\w \+ \w")
SOURCE = re.compile(r"\bEqs?\.|\(\d+\)|Section|Table|[Nn]ot in the paper")


def documentation(value):
    """Returns the docstring, followed by that of the function to which it refers for its arguments."""
    text = inspect.getdoc(value) or ""
    other = re.search(r"^\s*Args[^:\n]*: as in `(\w+)`", text, re.MULTILINE)
    return text + (documentation(getattr(inspect.getmodule(value), other[1])) if other else "")


def public(name):
    """Yields what `__all__` of a module lists, or what the module defines without an underscore."""
    module = importlib.import_module(name)
    for key in dir(module):
        value = getattr(module, key)
        is_own = key in module.__all__ if hasattr(module, "__all__") else getattr(value, "__module__", "") == name
        if is_own and not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield pytest.param(value, id=f"{name}.{key}")


def parameters(value):
    """Returns the names of the parameters of a function, or of the fields of a class."""
    if inspect.isclass(value):
        own = [name for base in value.__mro__[:-1] for name in vars(base).get("__annotations__", {})]
        return [name for name in own if not name.startswith("_") and name not in ("parent", "name", "scope")]
    return list(inspect.signature(value).parameters)


@pytest.mark.parametrize("value", [x for name in (*MATHEMATICS, *ENGINEERING) for x in public(name)])
def test_public_names_are_documented(value):
    """The docstring names every argument, its shape, the result, and the errors."""
    text = documentation(value)
    assert text, "no docstring"
    assert not (unnamed := [x for x in parameters(value) if not re.search(rf"(?<!\w){x}(?!\w)", text)]), unnamed
    if inspect.isfunction(value):
        source = inspect.getsource(value)
        if jax.Array in [x.annotation for x in inspect.signature(value).parameters.values()]:
            assert re.search(r"\[[^\]]*\]|shape|scalar", text), "no shapes"
        if re.search(r"^\s+(raise |_?check_)", source, re.MULTILINE):
            assert "Raises" in text, "no errors"
        if "return " in source and len(inspect.getdoc(value).splitlines()) > 1:
            assert "Returns" in text or FORMULA.search(text.split("\n\n")[0]), "no result"


@pytest.mark.parametrize("value", [x for name in MATHEMATICS for x in public(name)])
def test_mathematics_has_its_formula_and_its_source(value):
    """A function that computes begins with its formula, and names its equation or section, or that it is new."""
    if inspect.isfunction(value) or "__call__" in vars(value):
        first = inspect.getdoc(value).split("\n\n")[0]
        assert FORMULA.search(first), f"no formula: {first}"
        assert SOURCE.search(documentation(value)), "no source"


@pytest.mark.parametrize("name", [x.name for x in pkgutil.walk_packages(lowcost.__path__, "lowcost.")])
def test_examples_in_docstrings(name):
    with jax.enable_x64(False):
        result = doctest.testmod(importlib.import_module(name))
    assert not result.failed


def test_examples_are_there():
    """A doctest that is not collected would pass."""
    finder = doctest.DocTestFinder()
    names = ("depthwise", "depthwise_resolvent", "circulant", "pointwise", "symbol", "apply_symbol", "imex_euler")
    functions = [getattr(lowcost, name) for name in names]
    functions += [lowcost.analysis.max_stable_step, lowcost.convert.to_linear_mix, lowcost.nn.network]
    assert all(finder.find(function, function.__name__)[0].examples for function in functions)
