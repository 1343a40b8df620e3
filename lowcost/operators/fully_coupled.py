"""K(θ): the usual convolution, which couples every output channel to every input channel, Eq. (4)."""

import math
from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from lowcost.arguments import Boundary, promote
from lowcost.methods import Method
from lowcost.operators.boundary import pad
from lowcost.operators.forms import Ways, apply, convolve, correlate
from lowcost.operators.sliding import MAX_PATCH_POINTS, slide, slide_adjoint
from lowcost.spectral import filter_spectrum, unchecked_symbol

MAX_PATCH = 1200
"""Numbers per patch up to which the patches of an image stay in a CPU's cache."""


def fully_coupled(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """(K y)_{i,o} = Σ_{j,c} θ_{j,c,o} y_{i+j,c}, the usual convolution K(θ) of Eq. (4); j is 0 at the stencil's centre.

    Args:
        stencil: θ, [*window, C_in, C_out]; one to three window axes, each of any size up to the grid's.
        y: features, [..., *grid, C_in].
        boundary: what lies outside the grid: "periodic", "zeros" or "reflect".
        method: "direct" (XLA's convolution, or on a CPU a product with the patches of each image), "fft" or "matmul"
            (one small matrix product per frequency), or "auto" (the fastest according to measurements). All methods
            give the same result up to rounding.

    Returns:
        Features [..., *grid, C_out] with the dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.
    """
    return apply(convolve, _WAYS, "coupled", stencil, y, boundary, method)


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
    return apply(correlate, _WAYS, "coupled", stencil, z, boundary, method)


def slide_coupled(stencil, y, boundary):
    """K(θ) y by applying the stencil itself, on the images of one device."""
    if _by_patches(stencil):
        return slide(stencil, y, boundary, coupled=True)
    return convolve_by_xla(stencil, pad(y, stencil.shape[:-2], boundary)).astype(jnp.result_type(y))


def slide_coupled_adjoint(stencil, z, boundary):
    """K(θ)ᵀ z by applying the stencil itself, on the images of one device."""
    if _by_patches(stencil):
        return slide_adjoint(stencil, z, boundary, coupled=True)
    wide = jnp.promote_types(promote(stencil).dtype, promote(z).dtype)  # the padding's adjoint adds after the sum
    y = jax.ShapeDtypeStruct((*z.shape[:-1], stencil.shape[-2]), wide)
    transpose = jax.linear_transpose(
        lambda y: convolve_by_xla(promote(stencil), pad(y, stencil.shape[:-2], boundary)), y
    )
    return transpose(jnp.asarray(z, wide))[0].astype(jnp.result_type(z))


def _filter(function, stencil, method, y):
    """One matrix product per frequency, since the symbol of a coupled stencil is a matrix, [*grid, C_in, C_out]."""
    λ = function(unchecked_symbol(stencil, y.shape[1 - stencil.ndim : -1]))
    flat = λ.reshape(*λ.shape[:-2], -1)
    return filter_spectrum(flat, y, _multiply(λ.shape[-2:]), method, all_at_once=True)


@cache
def _multiply(channels):
    """(λ [*grid, C_in·C_out], ŷ) → λᵀ ŷ at each frequency; cached, because `filter_spectrum` compiles by identity."""

    def multiply(λ, spectrum):
        matrices = λ.reshape(*λ.shape[:-1], *channels)
        return jnp.einsum("...io,...i->...o", matrices, spectrum, precision=jax.lax.Precision.HIGHEST)

    return multiply


def _by_patches(stencil):
    """Whether a product with the patches of each image is faster than a convolution: on a CPU, for short patches."""
    short = math.prod(stencil.shape[:-2]) <= MAX_PATCH_POINTS and math.prod(stencil.shape[:-1]) <= MAX_PATCH
    return short and jax.default_backend() == "cpu"


def convolve_by_xla(stencil, padded, *, groups=1, precision=None):
    """K(θ) y by XLA's convolution: padded features [..., *grid, C_in], groups as XLA's `feature_group_count`.

    The default precision follows `jax.default_matmul_precision`, as a Flax layer does. Every backend sums the products
    of bfloat16 in float32.
    """
    dims = stencil.ndim - 2
    dtype = jnp.result_type(stencil.dtype, padded.dtype)
    batch, points = padded.shape[: -1 - dims], padded.shape[-1 - dims :]
    spatial = "XYZ"[:dims]
    result = jax.lax.conv_general_dilated(
        padded.reshape(math.prod(batch), *points).astype(dtype),
        stencil.astype(dtype),
        window_strides=(1,) * dims,
        padding="VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
        precision=precision,
    )
    return result.reshape(*batch, *result.shape[1:])


_WAYS = Ways(slide_coupled, slide_coupled_adjoint, _filter, lambda λ: jnp.conj(λ.swapaxes(-1, -2)), channel_axes=2)
