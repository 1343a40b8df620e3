"""K(θ): the usual convolution, which couples every output channel to every input channel, Eq. (4)."""

from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from lowcost.arguments import Boundary
from lowcost.methods import Method
from lowcost.operators.forms import StencilKind, apply, convolve, correlate
from lowcost.spectral import filter_spectrum, symbol_for


def fully_coupled(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """(K y)_{i,o} = Σ_{j,c} θ_{j,c,o} y_{i+j,c}, the usual convolution K(θ) of Eq. (4); j is 0 at the stencil's centre.

    Args:
        stencil: θ, [*window, C_in, C_out]; one to four window axes, each of any size up to the grid's.
        y: features, [..., *grid, C_in].
        boundary: what lies outside the grid: "periodic", "zeros", "reflect" or "symmetric", as in `depthwise`.
        method: "direct" (XLA's convolution; on a CPU Winograd's filtering or a product with patches, image by image,
            except for large stencils), "fft" or "matmul" (one small matrix product per frequency), or "auto" (the
            fastest according to measurements). All methods give the same result up to rounding. "direct" rounds as
            `jax.default_matmul_precision` says, by default to fewer bits on accelerators; the others use full
            precision.

    Returns:
        Features [..., *grid, C_out] with the dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.
    """
    return apply(convolve, COUPLED, "coupled", stencil, y, boundary, method)


def fully_coupled_adjoint(
    stencil: Array, z: Array, *, boundary: Boundary = "periodic", method: Method = "auto"
) -> Array:
    """K(θ)ᵀ z: the adjoint of `fully_coupled` with the same boundary, ⟨K y, z⟩ = ⟨y, Kᵀ z⟩, as in Eq. (3).

    Args:
        stencil: θ, [*window, C_in, C_out].
        z: features, [..., *grid, C_out].
        boundary, method: as in `fully_coupled`.

    Returns:
        Features [..., *grid, C_in] with the dtype of z.

    Raises:
        TypeError, ValueError: as in `fully_coupled`.
    """
    return apply(correlate, COUPLED, "coupled", stencil, z, boundary, method, adjoint=True)


def _filter(function, stencil, method, y):
    """One matrix product per frequency, since the symbol of a coupled stencil is a matrix, [*grid, C_in, C_out]."""
    λ = function(symbol_for(method, stencil, y.shape[1 - stencil.ndim : -1]))
    flat = λ.reshape(*λ.shape[:-2], -1)
    return filter_spectrum(flat, y, _multiply(λ.shape[-2:]), method, all_at_once=True)


@cache
def _multiply(channels):
    """(λ [*grid, C_in·C_out], ŷ) → λᵀ ŷ at each frequency; cached, because `filter_spectrum` compiles by identity."""

    def multiply(λ, spectrum):
        matrices = λ.reshape(*λ.shape[:-1], *channels)
        return jnp.einsum("...io,...i->...o", matrices, spectrum, precision=jax.lax.Precision.HIGHEST)

    return multiply


COUPLED = StencilKind(_filter, lambda λ: jnp.conj(λ.swapaxes(-1, -2)), channel_axes=2, coupled=lambda θ: θ)
