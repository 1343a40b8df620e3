"""Names the extra to install where an optional package is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turns an ImportError of the body into one that names the extra of this package, e.g. "data".

    Raises:
        ImportError: the body cannot import a package.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"the extra {name!r} must be installed, got {error}; run pip install '.[{name}]'") from error
