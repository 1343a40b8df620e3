"""Checks arguments that several functions share, and promotes them to float32.

Every error names the argument, states what is expected and what was passed, and says what to do.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Boundary = Literal["periodic", "zeros", "reflect", "symmetric"]
"""What lies outside the grid: its repetition, zeros, or its mirror image, which repeats the outermost point only if
"symmetric". The names of the last two are NumPy's, of the modes of `numpy.pad`."""

ResolventBoundary = Literal["periodic", "symmetric"]
"""The boundaries with which an inverse is diagonal: in the Fourier basis, and in that of the cosine transform."""


def check_floating(name: str, x: jax.typing.ArrayLike) -> None:
    """Raises TypeError unless x is an array of real floating point numbers."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{name} must be real floating point, got {got}; cast it, e.g. {name}.astype(jnp.float32)")


def check_stencil(stencil: jax.Array, grid: Sequence[int], *, channel_axes: int = 1) -> None:
    """Raises TypeError or ValueError unless the stencil [*window, *channels] is real and fits the grid."""
    check_floating("stencil", stencil)
    window = stencil.shape[: stencil.ndim - channel_axes]
    if not window or len(window) != len(grid):
        expected = f"{len(grid)} window axes, as the grid {list(grid)}, and {channel_axes} for channels"
        got = list(stencil.shape)
        raise ValueError(f"stencil must have {expected}, got shape {got}; pass one size per window axis")
    if any(m < 1 or m > n for m, n in zip(window, grid, strict=True)):
        expected = f"stencil must have from 1 to {_by(grid)} points, the size of the grid"
        raise ValueError(f"{expected}, got {_by(window)}; use a smaller stencil or a larger grid")


def check_features(name: str, y: jax.Array, stencil: jax.Array, *, channel_axes: int, axis: int) -> None:
    """Raises TypeError or ValueError unless the operator with this stencil applies to the features y.

    Args:
        name: what the caller's signature calls y.
        y: features, [..., *grid, C].
        stencil: [*window, *channels], with one to four window axes that fit the grid.
        channel_axes: number of axes of the stencil after its window.
        axis: of the stencil, whose size C must equal.
    """
    check_floating("stencil", stencil)
    check_floating(name, y)
    dims = stencil.ndim - channel_axes
    if not 1 <= dims <= 4:
        expected = "stencil must have one to four window axes before its channels"
        remedy = "a stencil of one point still has its axes, e.g. shape [1, 1, C]"
        raise ValueError(f"{expected}, got shape {list(stencil.shape)}; {remedy}")
    if 0 in stencil.shape[dims:]:
        raise ValueError(f"stencil must have a channel, got shape {list(stencil.shape)}; leave out the operator")
    if y.ndim < dims + 1:
        expected = f"{name} must be [..., *grid, C] with {dims} grid axes as the stencil"
        raise ValueError(f"{expected}, got shape {list(y.shape)}; add the missing axes")
    check_channels(name, y, "stencil", stencil, stencil.shape[axis])
    check_stencil(stencil, y.shape[-dims - 1 : -1], channel_axes=channel_axes)


def check_channels(name: str, y: jax.Array, weights_name: str, weights: jax.Array, channels: int) -> None:
    """Raises ValueError unless the last axis of y has the number of channels that the weights expect."""
    if y.shape[-1:] != (channels,):
        expected = f"{channels} channels on its last axis, as {weights_name} of shape {list(weights.shape)} expects"
        remedy = "move the channels last, or pass other weights"
        raise ValueError(f"{name} must have {expected}, got shape {list(y.shape)}; {remedy}")


def check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless choice is one of choices."""
    if choice not in choices:
        expected = f"{name} must be one of {', '.join(map(repr, choices))} here"
        raise ValueError(f"{expected}, got {choice!r}; choose one of these")


def check_time_step(h: float | jax.Array) -> None:
    """Raises ValueError if h is complex, negative or not finite; the numbers of a traced array are not known yet."""
    known = () if isinstance(h, jax.core.Tracer) else np.ravel(h)
    if np.iscomplexobj(h) or not all(0 <= x < math.inf for x in known):
        raise ValueError(f"h must be a finite time step ≥ 0, got {h}; the usual step is 1.0")


def promote(x: jax.Array) -> jax.Array:
    """Returns x in float32 at least: the operators accept bfloat16, but compute and sum in float32."""
    x = jnp.asarray(x)
    wide = jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize >= 4
    return x if wide else x.astype(jnp.float32)  # stated for jax_numpy_dtype_promotion="strict"


def common_dtype(*arrays: jax.Array) -> np.dtype:
    """Returns the dtype of the arrays, or the widest of several, float32 at least; for dtype promotion "strict" too."""
    dtypes = {jnp.result_type(x) for x in arrays}
    return dtypes.pop() if len(dtypes) == 1 else reduce(np.promote_types, dtypes, np.dtype(np.float32))


def _by(sizes):
    return "x".join(map(str, sizes))
