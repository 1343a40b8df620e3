"""What method="auto" means: the stencil applied directly or in the spectrum, by platform, stencil and channels.

The rules for CPUs are measured (XLA, 32x32 to 8x8 pixels, value and gradient); those for accelerators follow from
what they are built for. "auto" decides between "fft" and "matmul" later, by the grid, in `spectral`.
"""

import math
from collections.abc import Sequence

import jax

from lowcost.arguments import METHODS, check_choice


def depthwise_method(method: str, window: Sequence[int]) -> str:
    """ "direct" on accelerators up to 25 taps, a pass over memory; a CPU takes the stencil's gradient tap by tap."""
    return _choose(method, not _on_cpu() and math.prod(window) <= 25)


def fully_coupled_method(method: str, window: Sequence[int]) -> str:
    """ "direct" for 1x1, and on accelerators up to 11x11.

    XLA's CPU convolution and its gradient take longer than an FFT from 3x3 on (only from a single input channel they
    do not, and cost little either way).
    """
    return _choose(method, math.prod(window) <= (1 if _on_cpu() else 121))


def circulant_method(method: str, window: Sequence[int], channels: int) -> str:
    """ "direct" for few channels, up to 16 on a CPU and 64 on accelerators, since its cost grows with their square."""
    return _choose(method, math.prod(window) <= 25 and channels <= (16 if _on_cpu() else 64))


def _choose(method, direct_is_faster):
    check_choice("method", method, METHODS)
    return "direct" if method == "auto" and direct_is_faster else method


def _on_cpu():
    return jax.default_backend() == "cpu"
