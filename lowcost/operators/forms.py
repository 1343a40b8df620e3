"""K, Kᵀ, −KᵀK and (I + hKᵀK)⁻¹ of a stencil: what K, K_dw and K_circ, Eqs. (4), (5) and (12), have in common.

`apply` and `resolvent` check the arguments and choose the methods; the forms below them only compute.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lowcost.arguments import check_boundary, check_features, check_time_step, promote
from lowcost.batching import per_shard
from lowcost.methods import choices, on_platform
from lowcost.operators.boundary import with_boundary, with_boundary_adjoint
from lowcost.spectral import squared_modulus


class Ways(NamedTuple):
    """How an operator is computed on the images of one device.

    Attributes:
        slide: (stencil, y, boundary) → K y, by applying the stencil itself.
        slide_adjoint: (stencil, z, boundary) → Kᵀ z, by applying the stencil itself.
        filter: (function, stencil, method, y) → F⁻¹(function(λ) F y).
        adjoint: λ ↦ the symbol of Kᵀ.
        channel_axes: number of axes of the stencil after its window.
    """

    slide: Callable[..., jax.Array]
    slide_adjoint: Callable[..., jax.Array]
    filter: Callable[..., jax.Array]
    adjoint: Callable[[jax.Array], jax.Array] = jnp.conj
    channel_axes: int = 1


def apply(form, ways, operator, stencil, y, boundary, method):
    """Checks the arguments, chooses the method, and applies `form`, one of the functions below, on each device."""
    name, channels = ("z", -1) if form is correlate else ("y", -ways.channel_axes)
    check_features(name, y, stencil, channel_axes=ways.channel_axes, channels=channels)
    check_boundary(boundary)
    window = stencil.shape[: -ways.channel_axes]
    dims = len(window)
    chosen = choices(method, operator, y.shape[-dims - 1 : -1], window, stencil.shape[dims])
    options = {"ways": ways, "boundary": boundary}
    return per_shard(on_platform, dims, y, stencil, function=form, choices=chosen, **options)


def resolvent(ways, operator, stencil, y, h, method):
    """(I + hKᵀK)⁻¹ y: as `apply`, for the inverse, which is periodic and has no stencil."""
    check_features("y", y, stencil, channel_axes=1, channels=-1)
    check_time_step(h)
    grid = y.shape[-stencil.ndim : -1]
    chosen = choices(method, operator, grid, grid, y.shape[-1])
    return per_shard(on_platform, len(grid), y, stencil, h, function=_resolve, choices=chosen, ways=ways)


def convolve(y, stencil, ways, boundary, method):
    """K y."""
    if method == "direct":
        return ways.slide(stencil, y, boundary)
    periodic = partial(ways.filter, lambda λ: λ, stencil, method)
    convolved = with_boundary(periodic, promote(y), stencil.shape[: -ways.channel_axes], boundary)
    return convolved.astype(jnp.result_type(y))


def correlate(z, stencil, ways, boundary, method):
    """Kᵀ z."""
    if method == "direct":
        return ways.slide_adjoint(stencil, z, boundary)
    periodic = partial(ways.filter, ways.adjoint, stencil, method)
    correlated = with_boundary_adjoint(periodic, promote(z), stencil.shape[: -ways.channel_axes], boundary)
    return correlated.astype(jnp.result_type(z))


def diffuse(y, stencil, ways, boundary, method):
    """−KᵀK y."""
    if boundary == "periodic" and method != "direct":
        return ways.filter(lambda λ: -squared_modulus(λ), stencil, method, y)
    convolved = convolve(promote(y), stencil, ways, boundary, method)
    return -correlate(convolved, stencil, ways, boundary, method).astype(jnp.result_type(y))


def _resolve(y, stencil, h, ways, method):
    return ways.filter(lambda λ: 1 / (1 + h * squared_modulus(λ)), stencil, method, y)
