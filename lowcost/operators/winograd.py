"""Applies coupled stencils of three points per axis by fewer products: Winograd's minimal filtering F(2, 3).

On one axis, two neighbouring sums θ_1 y_i + θ_2 y_{i+1} + θ_3 y_{i+2} are Aᵀ (G θ ⊙ Bᵀ y), with four products in place
of six. On two axes a tile of 2x2 points takes 16 in place of 36, on three axes 64 in place of 216. All factors are 0,
±1 and ±1/2, so that rounding loses little (A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks,
CVPR 2016). With channels, each product is one of matrices, over all tiles of an image.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

TILES_MIN = 16
"""The fewest tiles per image; with fewer, reading the weights takes longer than the products."""
CHANNELS_MIN = 128
"""The least min(C_in, C_out) · 2 ** rank; with fewer channels the additions cost more than the products saved."""
NUMBERS_MAX = 2**22
"""The most numbers per image; the tiles need 2 ** rank times this memory."""


def is_faster(shape: Sequence[int], grid: Sequence[int]) -> bool:
    """Returns whether a CPU gains, for a stencil of this shape [*window, C_in, C_out] on a grid."""
    *window, c_in, c_out = shape
    size, points = 2 ** len(window), math.prod(grid)
    enough = points >= TILES_MIN * size and min(c_in, c_out) * size >= CHANNELS_MIN
    return enough and all(m == 3 for m in window) and points * max(c_in, c_out) <= NUMBERS_MAX


def transformed(stencil: jax.Array) -> jax.Array:
    """G θ along each axis: [3, ..., 3, C_in, C_out] → [4 ** rank, C_in, C_out]."""
    rank = stencil.ndim - 2
    for axis in range(rank):
        first, middle, last = jnp.split(stencil, 3, axis)
        ends = first + last
        stencil = jnp.concatenate([first, (ends + middle) / 2, (ends - middle) / 2, last], axis)
    return stencil.reshape(4**rank, *stencil.shape[-2:])


def transformed_adjoint(gradients: jax.Array) -> jax.Array:
    """Gᵀ along each axis: [4 ** rank, C_in, C_out] → [3, ..., 3, C_in, C_out]."""
    rank = (len(gradients).bit_length() - 1) // 2
    stencil = gradients.reshape(*[4] * rank, *gradients.shape[1:])
    for axis in range(rank):
        first, plus, minus, last = jnp.split(stencil, 4, axis)
        both = (plus + minus) / 2
        stencil = jnp.concatenate([first + both, (plus - minus) / 2, both + last], axis)
    return stencil


def apply(weights: jax.Array, padded: jax.Array) -> jax.Array:
    """K y of one image: `transformed` weights, and y [*(grid + 2), C_in] → [*grid, C_out]."""
    products = jax.lax.optimization_barrier(jnp.matmul(_tiles(padded), weights))
    grid = [points - 2 for points in padded.shape[:-1]]
    tiles = [-(-points // 2) for points in grid]
    terms = [products.reshape(*[4] * len(grid), *tiles, -1)]
    for _ in grid:  # Aᵀ along each axis
        terms = [points for a, b, c, d in terms for points in (a + b + c, b - c - d)]
    for axis in reversed(range(len(grid))):  # neighbours in the list are neighbours along this axis
        terms = [jnp.stack(pair, axis + 1) for pair in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0].reshape(*(2 * number for number in tiles), -1)[tuple(map(slice, grid))]


def gradient(padded: jax.Array, z: jax.Array) -> jax.Array:
    """∂⟨z, K y⟩ by the transformed weights, for one image: y [*(grid + 2), C_in], z [*grid, C_out]."""
    spread = [_even(z)]
    for axis in range(z.ndim - 1):  # A along each axis
        spread = [part for term in spread for part in _spread(term, axis)]
    return jnp.einsum("ktc,ktd->kcd", _tiles(padded), _stacked(spread))


def _even(y: jax.Array) -> jax.Array:
    """Extends axes with an odd number of points by a zero, for whole tiles."""
    return jnp.pad(y, [*((0, points % 2) for points in y.shape[:-1]), (0, 0)])


def _tiles(padded: jax.Array) -> jax.Array:
    """Bᵀ y along each axis: [*(grid + 2), C] → [4 ** rank, tiles, C]."""
    terms = [jax.lax.optimization_barrier(_even(padded))]
    for axis in range(padded.ndim - 1):
        terms = [part for term in terms for part in _differences(term, axis)]
    return _stacked(terms)


def _differences(y: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Bᵀ y along one axis, with one point per tile."""
    piece = partial(jax.lax.slice_in_dim, y, stride=2, axis=axis)
    a, b, c, d = (piece(i, i + y.shape[axis] - 3) for i in range(4))
    return a - c, b + c, c - b, b - d


def _spread(z: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """A z along one axis, with one point per tile."""
    even, odd = (jax.lax.slice_in_dim(z, i, z.shape[axis], 2, axis) for i in range(2))
    return even, even + odd, even - odd, -odd


def _stacked(terms: list[jax.Array]) -> jax.Array:
    # Without the barrier XLA's CPU backend would compute the terms again inside of the products.
    return jax.lax.optimization_barrier(jnp.stack([term.reshape(-1, term.shape[-1]) for term in terms]))
