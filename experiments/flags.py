"""The command line that gives a configuration."""

import dataclasses
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
