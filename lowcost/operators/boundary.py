"""Boundaries: pad, apply, crop (Section 3.2.3 allows padding where the grid is not meant to be periodic)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

_MODES = {"periodic": "wrap", "zeros": "constant", "reflect": "reflect"}
_Map = Callable[[jax.Array], jax.Array]


def with_boundary(periodic: _Map, y: jax.Array, window: Sequence[int], boundary: str) -> jax.Array:
    """crop ∘ periodic ∘ pad: a periodic stencil operator on a grid with another boundary.

    Args:
        periodic: the operator on periodic features [..., *grid, C] of any grid.
        y: features, [..., *grid, C].
        window: the stencil's points per axis.
        boundary: "periodic" (nothing to do), "zeros" or "reflect".
    """
    return periodic(y) if boundary == "periodic" else _crop(periodic(pad(y, window, boundary)), window)


def with_boundary_adjoint(adjoint: _Map, z: jax.Array, window: Sequence[int], boundary: str) -> jax.Array:
    """padᵀ ∘ adjoint ∘ cropᵀ: the adjoint of `with_boundary`, given the adjoint of its periodic operator."""
    return adjoint(z) if boundary == "periodic" else pad_adjoint(adjoint(pad(z, window, "zeros")), window, boundary)


def pad(y: jax.Array, window: Sequence[int], boundary: str) -> jax.Array:
    """Extend the grid of y [..., *grid, C] by what a stencil of this window reaches beyond it.

    m // 2 points before and m - 1 - m // 2 after each axis: "periodic" repeats the grid, "zeros" puts zeros,
    "reflect" mirrors at the outermost point without repeating it.

    Returns:
        [..., *(grid + window - 1), C].
    """
    before_grid = [(0, 0)] * (y.ndim - 1 - len(window))
    return jnp.pad(y, [*before_grid, *((m // 2, m - 1 - m // 2) for m in window), (0, 0)], mode=_MODES[boundary])


def pad_adjoint(z: jax.Array, window: Sequence[int], boundary: str) -> jax.Array:
    """padᵀ: what was copied outside the grid is added back where it came from."""
    grid = [n - (m - 1) for n, m in zip(z.shape[-1 - len(window) : -1], window, strict=True)]
    shape = (*z.shape[: -1 - len(window)], *grid, z.shape[-1])
    transpose = jax.linear_transpose(
        partial(pad, window=window, boundary=boundary), jax.ShapeDtypeStruct(shape, z.dtype)
    )
    return transpose(z)[0]


def _crop(y, window):
    for axis, m in enumerate(window, start=y.ndim - 1 - len(window)):
        y = jax.lax.slice_in_dim(y, m // 2, y.shape[axis] - (m - 1 - m // 2), axis=axis)
    return y
