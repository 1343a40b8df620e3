"""K(θ): the usual convolution, every output channel from every input channel, Eq. (4): what the paper does without."""

import math
from functools import cache

import jax
import jax.numpy as jnp

from lowcost.arguments import promote
from lowcost.operators.boundary import pad
from lowcost.operators.forms import Ways, apply, convolve, correlate
from lowcost.operators.sliding import UNROLLED, slide, slide_adjoint
from lowcost.spectral import coupled_symbol, filter_spectrum


def fully_coupled(stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto") -> jax.Array:
    """K(θ) y, (K y)_{i,o} = Σ_{j,c} θ_{j,c,o} y_{i+j,c}, j counted from the stencil's centre: Eq. (4).

    Args:
        stencil: θ, [*window, C_in, C_out]; one to three window axes, each of any size up to the grid's.
        y: features, [..., *grid, C_in].
        boundary: "periodic", "zeros" or "reflect": what lies beyond the grid.
        method: "direct" (XLA's convolution, or on a CPU a product with the patches of each image), "fft" or "matmul"
            (one small matrix product a frequency) or "auto". The result is the same.

    Returns:
        Features [..., *grid, C_out] with the dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.
    """
    return apply(convolve, _WAYS, "coupled", "y", stencil, y, boundary, method, channel_axis=-2)


def fully_coupled_adjoint(
    stencil: jax.Array, z: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K(θ)ᵀ z: the adjoint of `fully_coupled` with the same boundary, ⟨K y, z⟩ = ⟨y, Kᵀ z⟩; in Eq. (3) the way back.

    Args:
        stencil: θ, [*window, C_in, C_out].
        z: features, [..., *grid, C_out].
        boundary, method: as `fully_coupled`.

    Returns:
        Features [..., *grid, C_in] with the dtype of z.

    Raises:
        TypeError, ValueError: as `fully_coupled`.
    """
    return apply(correlate, _WAYS, "coupled", "z", stencil, z, boundary, method)


def slide_coupled(stencil, y, boundary):
    """K(θ) y directly, on the images of one device."""
    if _by_patches(stencil):
        return slide(stencil, y, boundary, coupled=True)
    return _slide_by_xla(stencil, pad(y, stencil.shape[:-2], boundary)).astype(jnp.result_type(y))


def slide_coupled_adjoint(stencil, z, boundary):
    """K(θ)ᵀ z directly, on the images of one device."""
    if _by_patches(stencil):
        return slide_adjoint(stencil, z, boundary, coupled=True)
    wide = jnp.promote_types(promote(stencil).dtype, promote(z).dtype)  # the padding's adjoint adds after the sum
    y = jax.ShapeDtypeStruct((*z.shape[:-1], stencil.shape[-2]), wide)
    transpose = jax.linear_transpose(lambda y: _slide_by_xla(promote(stencil), pad(y, stencil.shape[:-2], boundary)), y)
    return transpose(jnp.asarray(z, wide))[0].astype(jnp.result_type(z))


def _filter(function, stencil, method, y):
    """One matrix product a frequency: the symbol of a coupled stencil is a matrix, [*grid, C_in, C_out]."""
    λ = function(coupled_symbol(stencil, y.shape[1 - stencil.ndim : -1]))
    flat = λ.reshape(*λ.shape[:-2], -1)
    return filter_spectrum(flat, y, _multiply(λ.shape[-2:]), method, all_at_once=True)


@cache
def _multiply(channels):
    """(λ [*grid, C_in·C_out], ŷ) → the product of the matrix of each frequency with what ŷ has there."""

    def multiply(λ, spectrum):
        matrices = λ.reshape(*λ.shape[:-1], *channels)
        return jnp.einsum("...io,...i->...o", matrices, spectrum, precision=jax.lax.Precision.HIGHEST)

    return multiply


def _by_patches(stencil):
    """On a CPU a product with the patches of each image, while these stay in the cache, is faster than convolutions."""
    few = math.prod(stencil.shape[:-2]) <= 3 * UNROLLED and math.prod(stencil.shape[:-1]) <= 1200
    return jax.default_backend() == "cpu" and few


def _slide_by_xla(stencil, padded):
    """XLA's convolution of the padded grid; like a Flax layer it follows `jax.default_matmul_precision`.

    Of bfloat16 with bfloat16 the products are summed in float32 by every backend's convolution.
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
    )
    return result.reshape(*batch, *result.shape[1:])


_WAYS = Ways(slide_coupled, slide_coupled_adjoint, _filter, lambda λ: jnp.conj(λ.swapaxes(-1, -2)), channel_axes=2)
