"""Text that is safe to print: the names of files and classes may contain any character."""

import sys


def printable(text: object) -> str:
    r"""Returns the text on one line that a terminal shows as it is.

    A character without a shape of its own (control, bidirectional override, line separator, surrogate of a name that is
    not UTF-8) becomes its escape in Python, such as `\x1b`, `\n`, `\u202e` or `\udcff`; see `str.isprintable`.

    Args:
        text: anything with a `str`, such as a name, a path or an error.

    Returns:
        The text; applying the function again changes nothing.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def warn(text: object) -> None:
    """Prints the text on stderr, as one line whatever names it contains."""
    print(printable(text), file=sys.stderr)


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, at most 200 characters, or its type if it says nothing."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
