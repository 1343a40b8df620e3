"""K, Kᵀ, −KᵀK and (I + hKᵀK)⁻¹ of a stencil: what K, K_dw and K_circ, Eqs. (4), (5) and (12), have in common.

`apply` and `resolvent` check the arguments and choose the methods; the forms below them only compute.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from lowcost.arguments import Boundary, ResolventBoundary, check_choice, check_features, check_time_step, promote
from lowcost.batching import per_shard
from lowcost.methods import SPECTRAL, choices, on_platform
from lowcost.operators.boundary import with_boundary, with_boundary_adjoint
from lowcost.operators.sliding import slide, slide_adjoint
from lowcost.spectral import squared_modulus


class StencilKind(NamedTuple):
    """A kind of stencil, and how its operator is computed on the images of one device.

    Attributes:
        filter: (function, stencil, method, y) → F⁻¹(function(λ) F y); of a resolvent with the option `mirrored`.
        adjoint: λ ↦ the symbol of Kᵀ.
        channel_axes: number of axes of the stencil after its window.
        coupled: θ ↦ the stencil with which `fully_coupled` is K(θ); None if θ is applied channel by channel.
    """

    filter: Callable[..., jax.Array]
    adjoint: Callable[[jax.Array], jax.Array] = jnp.conj
    channel_axes: int = 1
    coupled: Callable[[jax.Array], jax.Array] | None = None


def apply(form, kind, operator, stencil, y, boundary, method, *more, adjoint=False):
    """Checks the arguments, chooses the method, and applies `form`, e.g. one of the functions below, on each device.

    Args:
        form: (y, stencil, *more, kind, boundary, method) → the result.
        more: further weights of the form, which the caller has checked.
        adjoint: whether the form is an adjoint, whose features are called z.
    """
    name, axis = ("z", -1) if adjoint else ("y", -kind.channel_axes)
    check_features(name, y, stencil, channel_axes=kind.channel_axes, axis=axis)
    check_choice("boundary", boundary, get_args(Boundary))
    window = stencil.shape[: -kind.channel_axes]
    dims = len(window)
    if dims > 3:  # an accelerator's convolutions have at most three axes
        check_choice("method on four grid axes", method, ("auto", *SPECTRAL))
        operator = {"diffusion": "real", "circulant": "circulant_resolvent"}.get(operator, "complex")
    chosen = choices(method, operator, y.shape[-dims - 1 : -1], window, stencil.shape[dims])
    options = {"kind": kind, "boundary": boundary}
    return per_shard(on_platform, dims, y, stencil, *more, function=form, choices=chosen, **options)


def resolvent(kind, operator, stencil, y, h, boundary, method):
    """(I + hKᵀK)⁻¹ y: as `apply`, for the inverse, which has no stencil."""
    check_features("y", y, stencil, channel_axes=1, axis=-1)
    check_time_step(h)
    check_choice("boundary", boundary, get_args(ResolventBoundary))
    grid = y.shape[-stencil.ndim : -1]
    chosen = choices(method, operator, grid, grid, y.shape[-1])
    options = {"kind": kind, "mirrored": boundary == "symmetric"}
    return per_shard(on_platform, len(grid), y, stencil, h, function=_resolve, choices=chosen, **options)


def convolve(y, stencil, kind, boundary, method):
    """K y."""
    if method == "direct":
        return _slide(slide, y, stencil, kind, boundary)
    periodic = partial(kind.filter, lambda λ: λ, stencil, method)
    convolved = with_boundary(periodic, promote(y), stencil.shape[: -kind.channel_axes], boundary)
    return convolved.astype(jnp.result_type(y))


def correlate(z, stencil, kind, boundary, method):
    """Kᵀ z."""
    if method == "direct":
        return _slide(slide_adjoint, z, stencil, kind, boundary)
    periodic = partial(kind.filter, kind.adjoint, stencil, method)
    correlated = with_boundary_adjoint(periodic, promote(z), stencil.shape[: -kind.channel_axes], boundary)
    return correlated.astype(jnp.result_type(z))


def diffuse(y, stencil, kind, boundary, method):
    """−KᵀK y."""
    if boundary == "periodic" and method != "direct":
        return kind.filter(lambda λ: -squared_modulus(λ), stencil, method, y)
    convolved = convolve(promote(y), stencil, kind, boundary, method)
    return -correlate(convolved, stencil, kind, boundary, method).astype(jnp.result_type(y))


def _slide(function, y, stencil, kind, boundary):
    weights = stencil if kind.coupled is None else kind.coupled(stencil)
    return function(weights, y, boundary, coupled=kind.coupled is not None)


def _resolve(y, stencil, h, kind, mirrored, method):
    return kind.filter(lambda λ: 1 / (1 + h * squared_modulus(λ)), stencil, method, y, mirrored=mirrored)
