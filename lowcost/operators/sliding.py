"""Applies K_dw and K by their stencil, as primitives of JAX: on a CPU image by image, elsewhere by XLA's convolution.

⟨z, K(θ) y⟩ = Σ_{i,j} θ_j y_{i+j} z_i is linear in θ, in y and in z. K y, Kᵀ z and the gradient in θ are the derivatives
of this form in z, y and θ. Derivatives of every order, forward and reverse, are therefore again one of the three
primitives. The derivative that JAX would derive adds zero-padded copies of the features and takes twice as long.

The platform is chosen when a program is lowered, inside the primitives, so that derivatives are traced once.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from lowcost.arguments import common_dtype, promote
from lowcost.batching import one_by_one, summed_one_by_one
from lowcost.operators import winograd
from lowcost.operators.boundary import EXTENSIONS, extend, pad, pad_adjoint, reach
from lowcost.primitive import primitive

UNROLLED = 49
"""Stencils of more points are applied in a loop, because compile time grows with the number of unrolled terms."""

MAX_PATCH_POINTS = 3 * UNROLLED
"""Points of a coupled stencil up to which patches are gathered; each point is one unrolled slice."""

MAX_PATCH = 1200
"""Numbers per patch up to which the patches of an image stay in a CPU's cache."""

_CACHE_LINE = 16
"""Channels in float32 that fill a cache line of a CPU."""


def slide(stencil: jax.Array, y: jax.Array, boundary: str, *, coupled: bool = False) -> jax.Array:
    """K(θ) y: Σ_j θ_j y_{i+j}, in the dtype of y, computed in float32 at least.

    Args:
        stencil: θ, [*window, C], or coupled [*window, C_in, C_out].
        y: features, [..., *grid, C], or C_in.
        boundary: "periodic", "zeros", "reflect" or "symmetric".
        coupled: whether the stencil couples all channels with each other.

    Returns:
        [..., *grid, C], or C_out.
    """
    return _bind(_slide, stencil, y, boundary, coupled)


def slide_adjoint(stencil: jax.Array, z: jax.Array, boundary: str, *, coupled: bool = False) -> jax.Array:
    """K(θ)ᵀ z, with the arguments of `slide`, but C_out and C_in exchanged."""
    return _bind(_slide_adjoint, stencil, z, boundary, coupled)


def _bind(operator, stencil, y, boundary, coupled):
    # XLA's convolutions sum products of bfloat16 in float32; a coupled stencil of that type moves half the bytes.
    dtype = common_dtype(stencil, y) if coupled else promote(y).dtype
    stencil, features = varying_alike(jnp.asarray(stencil, dtype), jnp.asarray(y, dtype))
    how = {"window": stencil.shape[: -1 - coupled], "coupled": coupled, "precision": matmul_precision()}
    return operator.bind(stencil, features, boundary=boundary, **how).astype(jnp.result_type(y))


def matmul_precision() -> str | None:
    """Returns the caller's precision of products: a primitive is lowered where the caller's block may have ended."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def varying_alike(stencil, features):
    """Returns both arrays as varying over the same mesh axes, so that a shared one gets the sum of their gradients."""
    if not jax.sharding.get_abstract_mesh().manual_axes:  # outside of any jax.shard_map
        return stencil, features
    zeros = [jax.lax.full_like(x, 0, shape=()) for x in (features, stencil)]
    return stencil + zeros[0], features + zeros[1]


# --- on one device ---------------------------------------------------------------------------------------------------


def convolution(sums_of, extension, stencil, boundary, grid):
    """Returns y → K y, with sums_of(stencil, grid) = extended y → Σ_j θ_j y_{i+j}."""
    window, apply = stencil.shape[: len(grid)], sums_of(stencil, grid)
    return lambda y: apply(extension(y, reach(window), boundary))


def correlation(sums_of, extension, stencil, boundary, grid):
    """Returns z → Kᵀ z, with the sums of the mirrored stencil."""
    window, mirrored = stencil.shape[: len(grid)], jnp.flip(stencil, range(len(grid)))
    apply = sums_of(mirrored if stencil.ndim == len(grid) + 1 else mirrored.swapaxes(-1, -2), grid)

    def correlate(z):
        if boundary == "periodic":
            return apply(extension(z, reach(window, mirrored=True), boundary))
        beyond = extension(z, [(m - 1, m - 1) for m in window], "zeros")
        return pad_adjoint(promote(apply(beyond)), window, boundary).astype(z.dtype)

    return correlate


def sums_by_xla(stencil, grid):
    """Returns extended y → Σ_j θ_j y_{i+j}, by XLA's convolution."""
    if stencil.ndim > len(grid) + 1:
        return partial(convolve_by_xla, stencil)
    # As exact as the sum on a CPU: accelerators would round the products to fewer bits.
    full = jax.lax.Precision.HIGHEST
    return partial(convolve_by_xla, stencil[..., None, :], groups=stencil.shape[-1], precision=full)


def gradient_by_xla(extension, y, z, boundary, shape, grid):
    """∂⟨z, K(θ) y⟩/∂θ of a batch, shaped as θ."""
    padded = extension(y, reach(shape[: len(grid)]), boundary)
    any_stencil = jnp.broadcast_to(jnp.sum(z[:0]), shape)  # made from z, so that it varies over devices like z
    return jax.linear_transpose(lambda stencil: sums_by_xla(stencil, grid)(padded), any_stencil)(z)[0]


def convolve_by_xla(stencil, padded, *, groups=1, precision=None):
    """K(θ) y by XLA's convolution: padded features [..., *grid, C_in], groups as XLA's `feature_group_count`.

    The default precision follows `jax.default_matmul_precision`, as a Flax layer does. Every backend sums the products
    of bfloat16 in float32.
    """
    dims = stencil.ndim - 2
    dtype = common_dtype(stencil, padded)
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


# --- one image on a CPU -----------------------------------------------------------------------------------------------


def gradient_of_image(shape, grid, boundary):
    """Returns (y, z) → ∂⟨z, K(θ) y⟩/∂θ of one image, in a form of its own, and what makes θ's shape of a sum of these.

    Patches are as fast as Winograd's products for a gradient, as long as they are short.
    """
    window = shape[: len(grid)]

    def of_extended(gradient):
        return lambda y, z: gradient(jax.lax.optimization_barrier(pad(y, window, boundary)), z)

    if len(shape) == len(grid) + 1:
        return of_extended(partial(_depthwise_gradient, window)), partial(jnp.reshape, shape=shape)
    if _short_patches(shape):
        return of_extended(partial(_coupled_gradient, window)), lambda total: total.T.reshape(shape)
    return of_extended(winograd.gradient), winograd.transformed_adjoint


def _depthwise_gradient(window, padded, z):
    """∂⟨z, K_dw(θ) y⟩/∂θ, [points, C]."""
    axes = range(len(window))
    if math.prod(window) > UNROLLED:
        return jax.lax.map(lambda j: jnp.sum(z * _moved(padded, j, z.shape[:-1]), axes), _offsets(window))
    return jnp.stack([jnp.sum(z * piece, axes) for piece in shifted(padded, window)])


def _coupled_gradient(window, padded, z):
    """∂⟨z, K(θ) y⟩/∂θ as [C_out, points·C_in], for which a CPU transposes z, and not the larger patches."""
    return jnp.tensordot(z, _patches(padded, window), axes=(tuple(range(len(window))),) * 2)


def sums(stencil, grid):
    """Returns extended y → Σ_j θ_j y_{i+j} of one image. What depends on the stencil alone is computed once."""
    rank = len(grid)
    if stencil.ndim == rank + 1:
        return partial(depthwise_sums, stencil)
    if winograd.is_faster(stencil.shape, grid):
        return partial(winograd.apply, winograd.transformed(stencil))
    matrix = stencil.reshape(-1, stencil.shape[-1])
    return lambda padded: _patches(jax.lax.optimization_barrier(padded), stencil.shape[:rank]) @ matrix


def depthwise_sums(stencil, padded):
    """Σ_j θ_j y_{i+j}, by shifted multiply-adds in one pass; of several images if the stencil is unrolled."""
    # Without the barriers XLA's CPU backend recomputes the padding in every term, and fuses chains of such sums, whose
    # terms it then recomputes exponentially often.
    padded, (*window, c) = jax.lax.optimization_barrier(padded), stencil.shape
    weights = stencil.reshape(-1, *(1,) * (padded.ndim - 1), c)
    if len(weights) > UNROLLED:
        offsets, piece = _offsets(window), partial(_moved, padded, grid=_grid(padded, window))

        def add(total, term):
            weight, offset = term
            return total + weight * piece(offset), None

        return jax.lax.scan(add, weights[0] * piece(offsets[0]), (weights[1:], offsets[1:]))[0]
    return jax.lax.optimization_barrier(reduce(jnp.add, map(jnp.multiply, weights, shifted(padded, window))))


def _patches(padded, window):
    """The features under the stencil at each point of the grid, [*grid, points·C]."""
    if padded.shape[-1] < _CACHE_LINE:  # shorter pieces are first joined along the last axis
        padded = jnp.concatenate(shifted(padded, (*(1,) * (len(window) - 1), window[-1])), axis=-1)
        window = (*window[:-1], 1)
    return jax.lax.optimization_barrier(jnp.concatenate(shifted(padded, window), axis=-1))


def shifted(padded: jax.Array, window: Sequence[int]) -> list[jax.Array]:
    """Returns the features moved by each offset of the window, from [..., *grid, C] with the grid padded by `pad`."""
    grid = _grid(padded, window)
    return [padded[..., *map(slice, j, j + grid), :] for j in _offsets(window)]


def _moved(padded, offset, grid):
    """The features moved by an offset that is known only at run time."""
    return jax.lax.dynamic_slice(padded, (*offset, np.int32(0)), (*grid, padded.shape[-1]))


def _short_patches(shape):
    *window, c_in, _ = shape
    points = math.prod(window)
    return points <= MAX_PATCH_POINTS and points * c_in <= MAX_PATCH


def _grid(padded, window):
    return np.subtract(padded.shape[-1 - len(window) : -1], window) + 1


def _offsets(window):
    return np.array(list(itertools.product(*map(range, window))), np.int32)


# --- as primitives ----------------------------------------------------------------------------------------------------


def _primitive(name, form):
    def apply(stencil, y, *, boundary, window, coupled, precision):
        grid = y.shape[-1 - len(window) : -1]

        def by_image(stencil, y):
            one = form(sums, extend, promote(stencil), boundary, grid)
            return one_by_one(lambda image: one(promote(image)).astype(y.dtype), len(grid) + 1, y)

        def by_xla(extension, stencil, y):
            return form(sums_by_xla, extension, stencil, boundary, grid)(y)

        fits = not coupled or _fits(stencil.shape, grid)
        return lowered(by_image, by_xla, precision, stencil, y, fits=fits)

    return primitive(name, apply, ("boundary", "window", "coupled", "precision"), leading_axes=True)


def _gradient(y, z, *, boundary, window, coupled, precision):
    """∂⟨z, K(θ) y⟩/∂θ of a batch."""
    grid = y.shape[-1 - len(window) : -1]
    shape = (*window, y.shape[-1], *([z.shape[-1]] if coupled else []))

    def by_image(y, z):
        gradient, finish = gradient_of_image(shape, grid, boundary)
        total = summed_one_by_one(lambda y, z: gradient(promote(y), promote(z)), len(grid) + 1, y, z)
        return finish(total).astype(z.dtype)

    by_xla = partial(gradient_by_xla, boundary=boundary, shape=shape, grid=grid)
    return lowered(by_image, by_xla, precision, y, z, fits=not coupled or _fits(shape, grid))


def _fits(shape, grid):
    """Returns whether a CPU takes a coupled stencil image by image."""
    return _short_patches(shape) or winograd.is_faster(shape, grid)


def lowered(by_image, by_xla, precision, *arrays, fits=True):
    """Chooses when the program is lowered: on a CPU `by_image`, if that fits.

    Elsewhere `by_xla`, whose first argument is the function that extends the grid.
    """
    by_platform = {platform: partial(by_xla, extension) for platform, extension in EXTENSIONS.items()}
    with jax.default_matmul_precision(precision):
        return jax.lax.platform_dependent(*arrays, **by_platform | ({"cpu": by_image} if fits else {}))


def derive(apply, adjoint, gradient):
    """Defines for each primitive the cotangents of its two arguments, which are the derivatives of the form in these.

    Args:
        apply: (θ, y) → K(θ) y.
        adjoint: (θ, z) → K(θ)ᵀ z.
        gradient: (y, z) → ∂⟨z, K(θ) y⟩/∂θ. All three have the same options.
    """
    by_θ, by_y, by_z = gradient.bind, adjoint.bind, apply.bind
    ad.defbilinear(apply, lambda z, θ, y, **how: by_θ(y, z, **how), lambda z, θ, y, **how: by_y(θ, z, **how))
    ad.defbilinear(adjoint, lambda y, θ, z, **how: by_θ(y, z, **how), lambda y, θ, z, **how: by_z(θ, y, **how))
    ad.defbilinear(gradient, lambda θ, y, z, **how: by_y(θ, z, **how), lambda θ, y, z, **how: by_z(θ, y, **how))


_slide = _primitive("slide", convolution)
_slide_adjoint = _primitive("slide_adjoint", correlation)
derive(_slide, _slide_adjoint, primitive("slide_gradient", _gradient, ("boundary", "window", "coupled", "precision")))
