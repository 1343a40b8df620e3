"""K, Kᵀ, −KᵀK and (I + hKᵀK)⁻¹ of a stencil: what K, K_dw and K_circ, Eqs. (4), (5) and (12), have in common."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lowcost.arguments import BOUNDARIES, check_choice, check_features, check_time_step, promote
from lowcost.batching import per_shard
from lowcost.methods import choose
from lowcost.operators.boundary import with_boundary, with_boundary_adjoint
from lowcost.spectral import squared_modulus


class Ways(NamedTuple):
    """How an operator is computed on the images of one device.

    Attributes:
        slide: (stencil, y, boundary) → K y, directly.
        slide_adjoint: (stencil, z, boundary) → Kᵀ z, directly.
        filter: (function, stencil, method, y) → F⁻¹(function(λ) F y).
        adjoint: λ ↦ the symbol of Kᵀ.
        channel_axes: how many axes the stencil has after its window.
    """

    slide: Callable[..., jax.Array]
    slide_adjoint: Callable[..., jax.Array]
    filter: Callable[..., jax.Array]
    adjoint: Callable[[jax.Array], jax.Array] = jnp.conj
    channel_axes: int = 1


def apply(form, ways, operator, name, stencil, y, boundary, method, *, channel_axis=-1):
    """Checks the arguments and applies `form`, one of this module's functions, on each device's own images."""
    check_features(name, y, stencil, channel_axes=ways.channel_axes, channel_axis=channel_axis)
    check_choice("boundary", boundary, BOUNDARIES)
    window = stencil.shape[: -ways.channel_axes]
    dims = len(window)
    method = choose(method, operator, y.shape[-dims - 1 : -1], window, stencil.shape[dims])
    return per_shard(form, dims, y, stencil, ways=ways, boundary=boundary, method=method)


def resolvent(ways, operator, stencil, y, h, method):
    """(I + hKᵀK)⁻¹ y: `apply` for the inverse, which is periodic and has no stencil."""
    check_features("y", y, stencil)
    check_time_step(h)
    grid = y.shape[-stencil.ndim : -1]
    method = choose(method, operator, grid, grid, y.shape[-1])
    return per_shard(_resolve, stencil.ndim - 1, y, stencil, h, ways=ways, method=method)


def convolve(y, stencil, ways, boundary, method):
    """K y."""
    if method == "direct":
        return ways.slide(stencil, y, boundary)
    filtered = partial(ways.filter, lambda λ: λ, stencil, method)
    return with_boundary(filtered, promote(y), stencil.shape[: -ways.channel_axes], boundary).astype(jnp.result_type(y))


def correlate(z, stencil, ways, boundary, method):
    """Kᵀ z."""
    if method == "direct":
        return ways.slide_adjoint(stencil, z, boundary)
    filtered = partial(ways.filter, ways.adjoint, stencil, method)
    return with_boundary_adjoint(filtered, promote(z), stencil.shape[: -ways.channel_axes], boundary).astype(
        jnp.result_type(z)
    )


def diffuse(y, stencil, ways, boundary, method):
    """−KᵀK y."""
    if boundary == "periodic" and method != "direct":
        return ways.filter(lambda λ: -squared_modulus(λ), stencil, method, y)
    convolved = convolve(promote(y), stencil, ways, boundary, method)
    return -correlate(convolved, stencil, ways, boundary, method).astype(jnp.result_type(y))


def _resolve(y, stencil, h, ways, method):
    return ways.filter(lambda λ: 1 / (1 + h * squared_modulus(λ)), stencil, method, y)
