"""Imports the names of a package at their first use, so that e.g. reading images needs no JAX."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def attributes(
    package: str, names: Sequence[str], homes: Sequence[str], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the `__getattr__` and the `__dir__` of a package, as in PEP 562.

    Args:
        package: name of the package.
        names: the names that the package offers from its homes.
        homes: modules that define these names, in the order in which they are searched. They are attributes themselves.
        submodules: further modules that are attributes of the package.
    """

    def get(name: str) -> Any:
        if name in (*homes, *submodules):
            try:
                return import_module(f"{package}.{name}")
            except ImportError as error:  # help() and inspect skip an attribute that is missing, e.g. without its extra
                raise AttributeError(f"module {package!r} has no attribute {name!r}: {error}") from error
        for home in homes if name in names else ():
            value = vars(import_module(f"{package}.{home}")).get(name)
            if getattr(value, "__module__", None) == f"{package}.{home}":  # defined there, not imported
                setattr(sys.modules[package], name, value)
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(sys.modules[package]), *names, *submodules})
