"""Names of a package that are imported at their first use: reading images needs no JAX."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def attributes(
    package: str, names: Sequence[str], homes: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the `__getattr__` and the `__dir__` of a package, as in PEP 562.

    Args:
        package: its name.
        names: what it offers.
        homes: its modules. Those among the names are offered themselves; the others, in this order, define the rest.
    """

    def get(name: str) -> Any:
        if name in homes:
            return import_module(f"{package}.{name}")
        for home in [home for home in homes if name in names and home not in names]:
            value = vars(import_module(f"{package}.{home}")).get(name)
            if getattr(value, "__module__", None) == f"{package}.{home}":  # defined there, not imported
                setattr(sys.modules[package], name, value)
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(sys.modules[package]), *names})
