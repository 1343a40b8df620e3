"""Chooses methods for method="auto": the fastest method at the nearest known size, for each platform.

The platform is chosen when a program is lowered (`on_platform`). Each platform has a table, `methods_CHIP.json`: each
line has an operator, a size, and the seconds that its value and gradients take by each method. The table for CPUs is
measured by `python -m experiments.autotune`. Those for accelerators are estimates of XLA's compilers, made with its
flag `--compile-for`. If a method needs more operations than at the known size, its seconds grow in proportion.

Two environment variables choose another table, on every platform: LOWCOST_METHODS names a file, LOWCOST_CHIP a chip
of `CHIPS`. `decided_by` replaces the table for CPUs: a training run measures its CPU.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax

from lowcost.arguments import check_choice

SpectralMethod = Literal["auto", "fft", "matmul"]
Method = Literal[SpectralMethod, "direct"]
MixMethod = Literal[Method, "coupled"]

SPECTRAL = get_args(SpectralMethod)[1:]
METHODS = get_args(Method)[1:]
METHODS_OF = {
    "real": SPECTRAL,
    "mirrored": SPECTRAL,
    "complex": SPECTRAL,
    "depthwise": METHODS,
    "diffusion": METHODS,
    "circulant": METHODS,
    "circulant_resolvent": SPECTRAL,
    "coupled": METHODS,
    "linear_mix": get_args(MixMethod)[1:],
}
"""The methods of each operator.

"real" and "complex" are filters with such a symbol; |λ|² and its functions are real. "mirrored" is a real filter by
cosine transforms. "depthwise" is K_dw, "diffusion" its diffusion; "circulant" is K_circ and its diffusion,
"circulant_resolvent" its resolvent; "coupled" is K. "linear_mix" is K_lm, by its parts K_dw and M, or "coupled", as one
convolution K.
"""

_MEASURED_AS = {
    "real": "diffusion",
    "mirrored": "diffusion",
    "complex": "depthwise",
    "circulant_resolvent": "circulant",
    "linear_mix": "depthwise",
}
"""The rows that serve an operator where a table has none of its own."""

CHIPS = {"cpu": "cpu", "tpu": "v5e", "default": "h100"}
"""The chip whose table serves a platform; "default" stands for all other platforms."""

LONGEST_AXIS = 1024
"""The most points of an axis for which "auto" may choose matrix products, whatever a table says."""

Choices = tuple[tuple[str, str], ...]
"""The method on each platform: ("cpu", …), ("tpu", …), and ("default", …) for all others."""


class Point(NamedTuple):
    """What "auto" decides by: an operator and its sizes, with the arguments of `choices`."""

    operator: str
    grid: tuple[int, ...]
    window: tuple[int, ...]
    channels: int

    def __str__(self) -> str:
        """Returns e.g. "depthwise 32x32 3x3 32"."""
        return f"{self.operator} {'x'.join(map(str, self.grid))} {'x'.join(map(str, self.window))} {self.channels}"


_DECIDE: ContextVar[Callable[[Point], str | None]] = ContextVar("decide", default=lambda point: None)


@contextmanager
def decided_by(decide: Callable[[Point], str | None]) -> Iterator[None]:
    """Replaces the table for CPUs in what is traced meanwhile: decide(point) is the method, or None for the table's."""
    token = _DECIDE.set(decide)
    try:
        yield
    finally:
        _DECIDE.reset(token)


def choices(method: Method, operator: str, grid: Sequence[int], window: Sequence[int], channels: int) -> Choices:
    """Returns the method to use on each platform: `method` itself, or for "auto" the fastest one known.

    Args:
        method: "auto", or one of `METHODS_OF[operator]`.
        operator: a key of `METHODS_OF`.
        grid: points per axis.
        window: the stencil's points per axis; of an operator without stencil e.g. the grid.
        channels: number of channels into the operator.

    Raises:
        ValueError: unknown method or chip; a table that cannot be read.
    """
    check_choice("method", method, ("auto", *METHODS_OF[operator]))
    if method != "auto":
        return (("default", method),)
    point = Point(operator, tuple(grid), tuple(window), channels)
    seconds = {platform: known_seconds(point, platform) for platform in CHIPS}
    chosen = {platform: min(of, key=of.__getitem__) for platform, of in seconds.items()}
    decided = _DECIDE.get()(point)
    if decided is not None:
        check_choice(f"the method of {point}", decided, METHODS_OF[operator])
        chosen["cpu"] = decided
    return tuple(chosen.items())


def on_platform(
    y: jax.Array, *weights: jax.Array, function: Callable[..., jax.Array], choices: Choices, **options: Any
) -> jax.Array:
    """Computes function(y, *weights, method=…, **options) by the method of the platform it is lowered for.

    Args:
        y, weights: arrays.
        function: a function that a module defines, because compiled programs are cached by it.
        choices: the methods.
        options: hashable keyword arguments of `function`.
    """
    if len({method for _, method in choices}) == 1:
        return function(y, *weights, method=choices[0][1], **options)
    return _lowered(function, choices, tuple(options.items()), y, *weights)


@partial(jax.jit, static_argnums=(0, 1, 2))  # outside of any jit all branches would be compiled at every call
def _lowered(function, choices, options, y, *weights):
    branches = {platform: partial(function, method=method, **dict(options)) for platform, method in choices}
    return jax.lax.platform_dependent(y, *weights, **branches)


def known_seconds(point: Point, platform: str) -> dict[str, float]:
    """Returns the seconds per feature of each method that may be chosen, from the table that serves a platform."""
    named = os.environ.get("LOWCOST_CHIP")
    if named:
        check_choice("LOWCOST_CHIP", named, tuple(CHIPS.values()))
    seconds = _seconds(*point, named or CHIPS[platform])
    if max(point.grid) <= LONGEST_AXIS:
        return seconds
    if min(seconds, key=seconds.__getitem__) == "matmul":
        return {"fft": seconds.get("fft", 0.0)}
    return {method: time for method, time in seconds.items() if method != "matmul"}


def _seconds(operator, grid, window, channels, chip):
    (n, m), dims = (math.prod(sizes) ** (1 / len(sizes)) for sizes in (grid, window)), len(grid)
    rows = _rows(operator, chip)

    def distance(row: dict) -> float:
        octaves = (math.log2(x / row[key]) for x, key in ((n, "n"), (m, "m"), (channels, "channels")))
        return 10 * abs(dims - row["dims"]) + sum(map(abs, octaves))  # dimensions before sizes

    nearest = min(rows, key=distance)
    known = _costs(nearest["operator"], *(nearest[key] for key in ("dims", "n", "m", "channels")))
    costs = _costs(operator, dims, n, m, channels)
    features = nearest["batch"] * nearest["n"] ** nearest["dims"] * nearest["channels"]
    measured = {method: seconds / features for method, seconds in nearest["seconds"].items()}
    return {
        method: measured[method] * max(1, costs[method] / known[method])
        for method in METHODS_OF[operator]
        if method in measured
    }


def _costs(operator, dims, n, m, channels):
    """Operations per feature of each method, up to a common factor."""
    mixed = channels if operator in ("circulant", "circulant_resolvent", "coupled") else 1
    # A cosine transform takes a complex FFT, not a real one; and on more axes it rearranges more copies, as measured.
    slower = 1 + dims if operator == "mirrored" else 1
    fft = slower * dims * math.log2(n) + (mixed if operator == "coupled" else 1 + math.log2(mixed))
    return {"fft": fft, "matmul": dims * n + mixed, "direct": m**dims * mixed, "coupled": m**dims * channels}


def _rows(operator, chip):
    """The rows that know a method of the operator, of the user's table; of the chip's own, if that has none."""
    paths = filter(None, (os.environ.get("LOWCOST_METHODS"), str(Path(__file__).with_name(f"methods_{chip}.json"))))
    names, known = (operator, _MEASURED_AS.get(operator, operator)), {*METHODS_OF[operator]}
    for path, name in itertools.product(paths, names):
        if rows := [row for row in _table(path) if row["operator"] == name and known & {*row["seconds"]}]:
            return rows
    raise AssertionError(f"the package's own table for {chip} must have rows for {operator}")


@cache
def _table(path: str) -> list[dict]:
    try:
        rows = map(json.loads, Path(path).read_text().splitlines())
        keys = ("operator", "dims", "n", "m", "channels", "batch", "seconds")
        return [{key: row[key] for key in keys} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = "LOWCOST_METHODS=" if path == os.environ.get("LOWCOST_METHODS") else ""
        raise ValueError(
            f"{name}{path} must be a table made by `python -m experiments.autotune`, got {error!r}; make it again"
        ) from None
