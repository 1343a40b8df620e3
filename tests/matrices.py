"""Builds the paper's printed matrices entry by entry, without FFT and without JAX.

Features y [*grid, C] become a vector channel by channel, as the printed blocks have it: all pixels of the first
channel in row-major order, then all pixels of the second, and so on. Leading batch axes stay in front.
"""

import functools
import itertools

import numpy as np


def to_vector(y, grid):
    """Returns y [..., *grid, C] as vectors [..., C·n], one channel after the other."""
    d = len(grid)
    return np.moveaxis(y, -1, -1 - d).reshape(*y.shape[: y.ndim - d - 1], -1)


def from_vector(vector, grid):
    """Inverts to_vector."""
    return np.moveaxis(vector.reshape(*vector.shape[:-1], -1, *grid), -1 - len(grid), -1)


def product(matrix, y, grid):
    """Returns the matrix times y [..., *grid, C_in], as features [..., *grid, C_out]."""
    return from_vector(to_vector(np.asarray(y, np.float64), grid) @ matrix.T, grid)


def convolution(stencil, grid, boundary="periodic"):
    """C(θ): (C y)_i = Σ_k θ_k y_{i+k}, where k = 0 is the stencil's centre, index m // 2 on each axis."""
    matrix = np.zeros((np.prod(grid), np.prod(grid)))
    for i in itertools.product(*map(range, grid)):
        for index, weight in np.ndenumerate(np.asarray(stencil, np.float64)):
            k = [t - m // 2 for t, m in zip(index, stencil.shape, strict=True)]
            j = [_pixel(a + b, n, boundary) for a, b, n in zip(i, k, grid, strict=True)]
            if None not in j:
                matrix[np.ravel_multi_index(i, grid), np.ravel_multi_index(j, grid)] += weight
    return matrix


def _pixel(i, n, boundary):
    """Returns which of the n pixels of an axis index i means, inside or outside of the grid; None for a zero."""
    if 0 <= i < n:
        return i
    if boundary == "symmetric":
        return -1 - i if i < 0 else 2 * n - 1 - i
    return {"periodic": i % n, "zeros": None, "reflect": -i if i < 0 else 2 * (n - 1) - i}[boundary]


def mirror(grid, channels):
    """Returns E, which puts an image next to its mirror images on a periodic grid of twice the points per axis."""
    each = [np.concatenate([np.eye(n), np.eye(n)[::-1]]) for n in grid]
    return np.kron(np.eye(channels), functools.reduce(np.kron, each))


def fully_coupled(stencil, grid, boundary="periodic"):
    """K(θ), Eq. (4): the block in row o, column i is C(θ_{i→o}) with θ_{i→o} = stencil[..., i, o]."""
    c_in, c_out = stencil.shape[-2:]
    return np.block([[convolution(stencil[..., i, o], grid, boundary) for i in range(c_in)] for o in range(c_out)])


def depthwise(stencil, grid, boundary="periodic"):
    """K_dw(θ), Eq. (5): C(θ⁽¹⁾), C(θ⁽²⁾), ... on the diagonal and nothing elsewhere."""
    c, empty = range(stencil.shape[-1]), np.zeros((np.prod(grid), np.prod(grid)))
    return np.block([[convolution(stencil[..., i], grid, boundary) if i == j else empty for j in c] for i in c])


def pointwise(matrix, grid, boundary="periodic"):
    """M(θ), Eq. (6): the printed matrix, row = output and column = input channel, times ⊗ I; no boundary enters."""
    return np.kron(np.asarray(matrix, np.float64).T, np.eye(np.prod(grid)))


def linear_mix(stencil, matrix, grid, boundary="periodic"):
    """K_lm(θ⁽¹⁾, θ⁽²⁾) = K_dw(θ⁽¹⁾) + M(θ⁽²⁾), Eq. (7)."""
    return depthwise(stencil, grid, boundary) + pointwise(matrix, grid)


def circulant(stencil, grid, boundary="periodic"):
    """K_circ(θ), Eq. (12): block (i, j) is C(θ⁽ʲ⁻ⁱ⁾), the index taken modulo c."""
    c = stencil.shape[-1]
    return np.block([[convolution(stencil[..., (j - i) % c], grid, boundary) for j in range(c)] for i in range(c)])
