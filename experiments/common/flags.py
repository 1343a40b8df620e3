"""The command line that gives a configuration."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any


def flags(config: Any, *without: str) -> list[str]:
    """["--epochs", "5", ...]: what differs from the defaults.

    Args:
        config: a dataclass that tyro reads.
        without: fields to leave out: positional ones, and what the caller says otherwise.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in without and value != field.default:
            words.append(f"--{field.name.replace('_', '-')}")
            if value is not True:
                words += map(str, value if isinstance(value, tuple) else (value,))
    return words


def shown(config: Any, *without: str) -> str:
    """The same as a page shows it: where the pictures lie is DIR."""
    if getattr(config, "data_dir", None) is not None:
        config = dataclasses.replace(config, data_dir=Path("DIR"))
    return shlex.join(flags(config, *without))
