"""K(θ): the usual convolution, every output channel from every input channel, Eq. (4): what the paper does without."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp

from lowcost.arguments import BOUNDARIES, check_choice, check_features
from lowcost.images import per_shard
from lowcost.methods import choose
from lowcost.operators.boundary import pad, with_boundary, with_boundary_adjoint
from lowcost.operators.sliding import UNROLLED, slide, slide_adjoint
from lowcost.spectral import coupled_symbol, filter_spectrum, widen


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
    return _checked("y", convolve, -2, stencil, y, boundary, method)


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
    return _checked("z", correlate, -1, stencil, z, boundary, method)


def _checked(name, function, channel_axis, stencil, y, boundary, method):
    """`function` over a batch, on each device's own images."""
    check_features(name, y, stencil, channel_axes=2, channel_axis=channel_axis)
    check_choice("boundary", boundary, BOUNDARIES)
    method = choose(method, "coupled", y.shape[1 - stencil.ndim : -1], stencil.shape[:-2], stencil.shape[-2])
    return per_shard(function, stencil.ndim - 2, y, stencil, boundary=boundary, method=method)


def convolve(y, stencil, boundary, method):
    """K(θ) y on the images of one device, with arguments that `fully_coupled` has checked."""
    window = stencil.shape[:-2]
    if method == "direct":
        if _by_patches(stencil):
            return slide(stencil, y, boundary, coupled=True)
        return _slide_by_xla(stencil, pad(y, window, boundary)).astype(jnp.result_type(y))
    apply = partial(_filter, stencil, "...io,...i->...o", method)
    return with_boundary(apply, widen(y), window, boundary).astype(jnp.result_type(y))


def correlate(z, stencil, boundary, method):
    """K(θ)ᵀ z on the images of one device, with arguments that `fully_coupled_adjoint` has checked."""
    window = stencil.shape[:-2]
    if method == "direct":
        if _by_patches(stencil):
            return slide_adjoint(stencil, z, boundary, coupled=True)
        wide = jnp.promote_types(widen(stencil).dtype, widen(z).dtype)  # the padding's adjoint adds after the sum
        y = jax.ShapeDtypeStruct((*z.shape[:-1], stencil.shape[-2]), wide)
        transpose = jax.linear_transpose(lambda y: _slide_by_xla(widen(stencil), pad(y, window, boundary)), y)
        return transpose(jnp.asarray(z, wide))[0].astype(jnp.result_type(z))
    apply = partial(_filter, stencil, "...io,...o->...i", method)
    return with_boundary_adjoint(apply, widen(z), window, boundary).astype(jnp.result_type(z))


def _filter(stencil, product, method, y):
    """One matrix product a frequency: the symbol of a coupled stencil is a matrix, [*grid, C_in, C_out]."""
    grid = y.shape[1 - stencil.ndim : -1]
    λ = coupled_symbol(stencil, grid)
    if product.endswith("i"):
        λ = jnp.conj(λ)
    return filter_spectrum(
        λ.reshape(*grid, -1), y, _multiply(product, stencil.shape[-2:]), method=method, together=True
    )


@cache
def _multiply(product, channels):
    """(λ [*grid, C_in·C_out], ŷ) → the product of the matrix of each frequency with what ŷ has there."""

    def multiply(λ, spectrum):
        matrices = λ.reshape(*λ.shape[:-1], *channels)
        return jnp.einsum(product, matrices, spectrum, precision=jax.lax.Precision.HIGHEST)

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
