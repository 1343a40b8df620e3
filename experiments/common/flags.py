"""Turns a configuration into the command line that gives it."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any


def flags(config: Any, *without: str, prefix: str = "") -> list[str]:
    """Returns ["--epochs", "5", ...]: the flags of all fields that differ from their defaults.

    Args:
        config: a dataclass that tyro reads, whose defaults are values.
        without: names of fields to leave out, such as positional ones.
        prefix: what tyro puts before the names of a nested dataclass, such as "cluster.".
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in without or value == field.default:
            continue
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += flags(value, prefix=f"{name}.")
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def shown(config: Any, *without: str) -> str:
    """Returns the same as one line for a page, which names the folder of the images DIR."""
    if getattr(config, "data_dir", None) is not None:
        config = dataclasses.replace(config, data_dir=Path("DIR"))
    return shlex.join(flags(config, *without))
