"""Prints lines on stderr and makes text safe to print: names of files and classes may contain any character."""

import sys
from collections.abc import Sequence


def printable(text: object) -> str:
    r"""Returns str(text) on one line, with Python's escapes for characters that are not printable.

    Such characters are controls, bidirectional overrides, line separators, and surrogates in names that are not UTF-8.
    Their escapes are `\x1b`, `\n`, `\u202e` or `\udcff`, for example; see `str.isprintable`. Idempotent.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def note(text: object) -> None:
    """Prints the text on stderr on one line, see `printable`."""
    print(printable(text), file=sys.stderr)


def warn(text: object) -> None:
    """Prints "warning: text", as `note` does."""
    note(f"warning: {text}")


def report_error(text: object) -> None:
    """Prints "error: text", as `note` does."""
    note(f"error: {text}")


def listed(names: Sequence[str]) -> str:
    """Returns at most ten names, separated by commas, and an ellipsis if there are more."""
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 200 characters, or its type if the message is empty."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
