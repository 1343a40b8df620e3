"""The meaning of method="auto": the fastest method at the nearest measured size, or a rule where nothing was measured.

If a method needs more operations than at the measured size, its seconds grow in proportion.

`python -m experiments.autotune` makes `methods_cpu.json`. Each line has an operator, a size, and the seconds that its
value and gradients take by each method. The environment variable LOWCOST_METHODS names a file that replaces it, on any
platform. The rule for accelerators is not measured; it follows from the hardware's fast matrix products.
"""

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import jax

from lowcost.arguments import check_choice

SpectralMethod = Literal["auto", "fft", "matmul"]
Method = Literal[SpectralMethod, "direct"]

SPECTRAL = get_args(SpectralMethod)[1:]
METHODS = get_args(Method)[1:]
WAYS = {
    "real": SPECTRAL,
    "complex": SPECTRAL,
    "depthwise": METHODS,
    "diffusion": METHODS,
    "circulant": METHODS,
    "circulant_resolvent": SPECTRAL,
    "coupled": METHODS,
}
"""The methods of each operator.

"real" and "complex" are filters with such a symbol; |λ|² and its functions are real. "depthwise" is K_dw, "diffusion"
its diffusion; "circulant" is K_circ and its diffusion, "circulant_resolvent" its resolvent; "coupled" is K.
"""

_MEASURED_AS = {"real": "diffusion", "complex": "depthwise", "circulant_resolvent": "circulant"}


def choose(method: Method, operator: str, grid: Sequence[int], window: Sequence[int], channels: int) -> str:
    """Returns the method to use: `method` itself, or for "auto" the fastest one known.

    Args:
        method: "auto", or one of `WAYS[operator]`.
        operator: a key of `WAYS`.
        grid: points per axis.
        window: the stencil's points per axis; of an operator without stencil e.g. the grid.
        channels: number of channels into the operator.

    Raises:
        ValueError: unknown method; a table that cannot be read.
    """
    check_choice("method", method, ("auto", *WAYS[operator]))
    if method != "auto":
        return method
    (n, m), dims = (math.prod(sizes) ** (1 / len(sizes)) for sizes in (grid, window)), len(grid)
    rows = [row for row in _measured(jax.default_backend()) if row["operator"] == _MEASURED_AS.get(operator, operator)]
    if not rows:
        return _rule(operator, max(grid), math.prod(window), channels)

    def distance(row: dict) -> float:
        octaves = (math.log2(x / row[key]) for x, key in ((n, "n"), (m, "m"), (channels, "channels")))
        return 10 * abs(dims - row["dims"]) + sum(map(abs, octaves))  # dimensions before sizes

    nearest = min(rows, key=distance)
    measured = _costs(operator, *(nearest[key] for key in ("dims", "n", "m", "channels")))
    costs = _costs(operator, dims, n, m, channels)
    seconds = {way: seconds * max(1, costs[way] / measured[way]) for way, seconds in nearest["seconds"].items()}
    return min((way for way in WAYS[operator] if way in seconds), key=seconds.__getitem__)


def _costs(operator, dims, n, m, channels):
    """Operations per feature of each method, up to a common factor."""
    mixed = channels if operator in ("circulant", "circulant_resolvent", "coupled") else 1
    fft = dims * math.log2(n) + (mixed if operator == "coupled" else 1 + math.log2(mixed))
    return {"fft": fft, "matmul": dims * n + mixed, "direct": m**dims * mixed}


@cache
def _measured(platform: str) -> list[dict]:
    own = os.environ.get("LOWCOST_METHODS")
    path = Path(own) if own else Path(__file__).with_name(f"methods_{platform}.json")
    if not own and not path.exists():
        return []
    try:
        rows = map(json.loads, path.read_text().splitlines())
        return [{key: row[key] for key in ("operator", "dims", "n", "m", "channels", "seconds")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{'LOWCOST_METHODS=' if own else ''}{path} must be a table made by `python -m experiments.autotune`, "
            f"got {error!r}; make it again"
        ) from None


def _rule(operator: str, n: int, points: int, channels: int) -> str:
    """Returns "direct" for short stencils (if circulant, with few channels), else "matmul" on small grids, else "fft".

    The DFT as a matrix product costs n operations per point and axis, the FFT log n, but matrix products run faster.
    """
    longest = {"depthwise": 25, "diffusion": 25, "circulant": 25, "coupled": 121}.get(operator, 0)
    if points <= longest and (operator != "circulant" or channels <= 64):
        return "direct"
    largest_grid = 256 if jax.default_backend() == "tpu" else 64
    return "matmul" if n <= largest_grid else "fft"
