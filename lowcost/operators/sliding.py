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

from lowcost.arguments import promote
from lowcost.batching import one_by_one
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
    dtype = jnp.result_type(stencil, y) if coupled else promote(y).dtype
    stencil, features = _varying_alike(jnp.asarray(stencil, dtype), jnp.asarray(y, dtype))
    # The precision is that of the caller: the primitives are lowered where its `with` block may have ended.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    how = {"rank": stencil.ndim - 1 - coupled, "precision": precision}
    return operator.bind(stencil, features, boundary=boundary, **how).astype(jnp.result_type(y))


def _varying_alike(stencil, features):
    """Returns both arrays as varying over the same mesh axes, so that a shared one gets the sum of their gradients."""
    if not jax.sharding.get_abstract_mesh().manual_axes:  # outside of any jax.shard_map
        return stencil, features
    zeros = [jax.lax.full_like(x, 0, shape=()) for x in (features, stencil)]
    return stencil + zeros[0], features + zeros[1]


# --- on one device ---------------------------------------------------------------------------------------------------


def _convolve(apply, extension, stencil, y, boundary, rank):
    return apply(stencil, extension(y, reach(stencil.shape[:rank]), boundary), rank)


def _correlate(apply, extension, stencil, z, boundary, rank):
    window = stencil.shape[:rank]
    mirrored = jnp.flip(stencil, range(rank))
    if stencil.ndim > rank + 1:
        mirrored = mirrored.swapaxes(-1, -2)
    if boundary == "periodic":
        return apply(mirrored, extension(z, reach(window, mirrored=True), boundary), rank)
    beyond = extension(z, [(m - 1, m - 1) for m in window], "zeros")
    return pad_adjoint(promote(apply(mirrored, beyond, rank)), window, boundary).astype(z.dtype)


def _apply_by_xla(stencil, padded, rank):
    """Σ_j θ_j y_{i+j} over padded grids, by XLA's convolution."""
    if stencil.ndim > rank + 1:
        return convolve_by_xla(stencil, padded)
    # As exact as the sum on a CPU: accelerators would round the products to fewer bits.
    full = jax.lax.Precision.HIGHEST
    return convolve_by_xla(stencil[..., None, :], padded, groups=stencil.shape[-1], precision=full)


def _gradient_by_xla(extension, y, z, boundary, rank, shape):
    padded = extension(y, reach(shape[:rank]), boundary)
    any_stencil = jnp.broadcast_to(jnp.sum(z[:0]), shape)  # made from z, so that it varies over devices like z
    return jax.linear_transpose(lambda stencil: _apply_by_xla(stencil, padded, rank), any_stencil)(z)[0]


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


# --- one image on a CPU -----------------------------------------------------------------------------------------------


def _gradient_of_image(y, z, boundary, shape):
    """∂⟨z, K(θ) y⟩/∂θ, shaped as θ."""
    rank = y.ndim - 1
    window = shape[:rank]
    padded = jax.lax.optimization_barrier(pad(y, window, boundary))
    if len(shape) > rank + 1:
        patches = _patches(padded, window)
        return jnp.tensordot(patches, z, axes=(tuple(range(rank)),) * 2).reshape(shape)
    if math.prod(window) > UNROLLED:
        gradient = jax.lax.map(lambda j: jnp.sum(z * _moved(padded, j, z.shape[:-1]), range(rank)), _offsets(window))
    else:
        gradient = jnp.stack([jnp.sum(z * piece, range(rank)) for piece in shifted(padded, window)])
    return gradient.reshape(shape)


def _apply(stencil, padded, rank):
    """Σ_j θ_j y_{i+j} over a padded grid: shifted multiply-adds in one pass, or one matrix product if coupled."""
    # Without the barriers XLA's CPU backend recomputes the padding in every term, and fuses chains of such sums, whose
    # terms it then recomputes exponentially often.
    padded, window = jax.lax.optimization_barrier(padded), stencil.shape[:rank]
    if stencil.ndim > rank + 1:
        return _patches(padded, window) @ stencil.reshape(-1, stencil.shape[-1])
    weights = stencil.reshape(-1, *(1,) * rank, stencil.shape[-1])
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


def _grid(padded, window):
    return np.subtract(padded.shape[-1 - len(window) : -1], window) + 1


def _offsets(window):
    return np.array(list(itertools.product(*map(range, window))), np.int32)


# --- as primitives ----------------------------------------------------------------------------------------------------


def _primitive(name, form):
    def apply(stencil, y, *, boundary, rank, precision):
        def by_image(stencil, y):
            def one(image):
                return form(_apply, extend, promote(stencil), promote(image), boundary, rank).astype(y.dtype)

            return one_by_one(one, rank + 1, y)

        def by_xla(extension, stencil, y):
            return form(_apply_by_xla, extension, stencil, y, boundary, rank)

        with jax.default_matmul_precision(precision):
            return _on_platform(by_image, by_xla, stencil.shape, rank, stencil, y)

    return primitive(name, apply, ("boundary", "rank", "precision"), leading_axes=True)


def _gradient(y, z, *, boundary, rank, precision, shape):
    """∂⟨z, K(θ) y⟩/∂θ of a batch."""

    def by_image(y, z):
        def one(y, z):
            return _gradient_of_image(promote(y), promote(z), boundary, shape)

        return one_by_one(one, rank + 1, y, z).reshape(-1, *shape).sum(0).astype(z.dtype)

    by_xla = partial(_gradient_by_xla, boundary=boundary, rank=rank, shape=shape)
    with jax.default_matmul_precision(precision):
        return _on_platform(by_image, by_xla, shape, rank, y, z)


def _on_platform(by_image, by_xla, shape, rank, *arrays):
    """Chooses when the program is lowered: on a CPU `by_image`, but not for the long patches of a coupled stencil.

    `by_xla` first takes the function that extends the grid.
    """
    coupled, points = len(shape) > rank + 1, math.prod(shape[:rank])
    short = not coupled or (points <= MAX_PATCH_POINTS and points * shape[rank] <= MAX_PATCH)
    ways = {platform: partial(by_xla, extension) for platform, extension in EXTENSIONS.items()}
    return jax.lax.platform_dependent(*arrays, **ways | ({"cpu": by_image} if short else {}))


_slide = _primitive("slide", _convolve)
_slide_adjoint = _primitive("slide_adjoint", _correlate)
_slide_gradient = primitive("slide_gradient", _gradient, ("boundary", "rank", "precision", "shape"))

# For each primitive the cotangents of its two arguments, which are the derivatives of the form in these.
ad.defbilinear(
    _slide,
    lambda z, θ, y, **how: _slide_gradient.bind(y, z, shape=θ.aval.shape, **how),
    lambda z, θ, y, **how: _slide_adjoint.bind(θ, z, **how),
)
ad.defbilinear(
    _slide_adjoint,
    lambda y, θ, z, **how: _slide_gradient.bind(y, z, shape=θ.aval.shape, **how),
    lambda y, θ, z, **how: _slide.bind(θ, y, **how),
)
ad.defbilinear(
    _slide_gradient,
    lambda θ, y, z, shape, **how: _slide_adjoint.bind(θ, z, **how),
    lambda θ, y, z, shape, **how: _slide.bind(θ, y, **how),
)
