"""Converts dense kernels to the nearest low-cost operators, and operators to dense kernels.

K_dw, K_lm and K_circ are linear subspaces of all convolutions. The nearest member in the Frobenius norm is therefore
the orthogonal projection: the mask of Section 3.1 for K_dw and K_lm, the mean along the circulant diagonals for K_circ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import check_floating, promote
from lowcost.operators import circulant, linear_mix
from lowcost.spectral import root
from lowcost.time_stepping import Map


class StencilFit(NamedTuple):
    """The nearest operator K(θ) with one stencil per channel.

    Attributes:
        stencil: θ, [*window, C].
        error: ‖K - K(θ)‖_F / ‖K‖_F, from 0 (K = K(θ)) to 1 (K is orthogonal to the class); 0 if K = 0.
    """

    stencil: jax.Array
    error: jax.Array


class LinearMixFit(NamedTuple):
    """The nearest K_lm.

    Attributes:
        stencil: θ¹, [*window, C].
        matrix: θ², [C, C] with a zero diagonal; the centres of the stencils contain it.
        error: as in `StencilFit`.
    """

    stencil: jax.Array
    matrix: jax.Array
    error: jax.Array


def to_depthwise(stencil: jax.Array) -> StencilFit:
    """θ_{j,c} = K_{j,c,c}: the K_dw(θ) nearest to K in the Frobenius norm, Eq. (5).

    Args:
        stencil: K, [*window, C, C].

    Returns:
        (θ [*window, C], relative error).

    Raises:
        TypeError: the stencil is not real floating point.
        ValueError: the stencil is not [*window, C, C].
    """
    _check_square(stencil)
    θ = jnp.diagonal(stencil, axis1=-2, axis2=-1)
    nothing = jnp.zeros_like(stencil, shape=stencil.shape[-2:])
    return StencilFit(θ, _relative_error(stencil, linear_mix.as_fully_coupled(θ, nothing)))


def to_linear_mix(stencil: jax.Array) -> LinearMixFit:
    """K's diagonal blocks and its 1x1 part: the K_lm(θ¹, θ²) nearest to K in the Frobenius norm, Eq. (7).

    Args:
        stencil: K, [*window, C, C]; the centre of an axis of m points is index m // 2.

    Returns:
        (θ¹ [*window, C], θ² [C, C], relative error).

    Raises:
        TypeError, ValueError: as in `to_depthwise`.

    Example:
        >>> kernel = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.array([[1.0, 2.0], [3.0, 4.0]]))  # a 1x1 convolution
        >>> print(to_linear_mix(kernel).error)
        0.0
    """
    _check_square(stencil)
    θ = jnp.diagonal(stencil, axis1=-2, axis2=-1)
    matrix = jnp.fill_diagonal(stencil[tuple(m // 2 for m in stencil.shape[:-2])], 0, inplace=False)
    return LinearMixFit(θ, matrix, _relative_error(stencil, linear_mix.as_fully_coupled(θ, matrix)))


def to_circulant(stencil: jax.Array) -> StencilFit:
    """θ_{j,p} = (1/c) Σ_i K_{j,i,i-p mod c}: the K_circ(θ) nearest to K in the Frobenius norm, Eq. (12).

    Args:
        stencil: K, [*window, C, C].

    Returns:
        (θ [*window, C], relative error).

    Raises:
        TypeError, ValueError: as in `to_depthwise`.
    """
    _check_square(stencil)
    c = stencil.shape[-1]
    i, p = np.indices((c, c))
    θ = jnp.mean(stencil[..., i, (i - p) % c], axis=-2)
    return StencilFit(θ, _relative_error(stencil, circulant.as_fully_coupled(θ)))


def dense_stencil(operator: Map, window: Sequence[int], channels: int) -> jax.Array:
    """θ_{j,c,o} = ∂(K y)_{centre,o} / ∂y_{j,c} on a grid of the window's size: any operator as K, Eq. (4).

    `fully_coupled(dense_stencil(operator, window, C), y)` is `operator(y)` on every grid at least as large as the
    window, if the window covers the operator's reach. The reach is that of the stencil, and 2m - 1 points for KᵀK. A
    resolvent reaches the whole grid, and its dense stencil is right for that grid only.

    Args:
        operator: y ↦ K y, linear, commuting with shifts of the periodic grid, e.g. `partial(depthwise, stencil)`.
        window: points per axis of the dense stencil.
        channels: C_in.

    Returns:
        θ, [*window, C_in, C_out] in JAX's default float type.

    Raises:
        ValueError: from the operator, if its own stencil is larger than the window.
    """
    centre = tuple(m // 2 for m in window)
    rows = jax.jacrev(lambda y: operator(y)[centre])(jnp.zeros((*window, channels)))  # [C_out, *window, C_in]
    return jnp.moveaxis(rows, 0, -1)


def _check_square(stencil):
    check_floating("stencil", stencil)
    if stencil.ndim < 3 or stencil.shape[-1] != stencil.shape[-2]:
        expected = "stencil must be [*window, C, C] with as many channels out as in"
        remedy = "convert layers that keep the number of channels"
        raise ValueError(f"{expected}, got shape {list(stencil.shape)}; {remedy}")
    if not stencil.size:
        raise ValueError(f"stencil must hold numbers, got shape {list(stencil.shape)}; leave out the layer")


def _relative_error(stencil, nearest):
    """‖K - P‖_F / ‖K‖_F, in float32 at least; 0 for K = 0."""
    stencil, nearest = promote(stencil), promote(nearest)
    largest = jax.lax.stop_gradient(jnp.abs(stencil).max())
    scale = jnp.where(largest == 0, 1, largest)  # else the squares could underflow or overflow
    stencil, nearest = stencil / scale, nearest / scale
    norm = root(jnp.sum(stencil**2))
    return root(jnp.sum((stencil - nearest) ** 2)) / jnp.where(norm == 0, 1, norm)
