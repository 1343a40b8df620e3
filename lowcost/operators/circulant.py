"""K_circ(θ): block circulant in the channels, hence diagonal in F₃, the transform over space and channels, Eq. (12)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from lowcost.arguments import Boundary, ResolventBoundary
from lowcost.methods import Method, SpectralMethod
from lowcost.operators.forms import StencilKind, apply, convolve, correlate, diffuse, resolvent
from lowcost.spectral import scale_spectrum, symbol_for


def circulant(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """F₃⁻¹(λ ⊙ F₃ y) = K_circ(θ) y, the block circulant convolution of Eq. (12).

    Block (i, j), from channel j to channel i, is the convolution with θ[..., (j - i) mod C]. F₃ is the Fourier
    transform along the grid and the channels, and λ is `circulant_symbol(stencil, grid)`.

    Args:
        stencil: θ, [*window, C]; θ[..., p] weights input channel (i + p) mod C in output channel i.
        y: features, [..., *grid, C].
        boundary: what lies outside the grid: "periodic", "zeros", "reflect" or "symmetric", as in `depthwise`. The
            channels are always periodic.
        method: "fft", "matmul" (the DFTs as real matrix products), "direct" (`fully_coupled` with the stencil
            `as_fully_coupled`) or "auto" (the fastest according to measurements). All methods give the same result up
            to rounding. "direct" rounds as in `fully_coupled`.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.

    Example:
        >>> stencil = jnp.array([[0.0, 1.0, 0.0]])  # a window of one point; output channel i is input channel i + 1
        >>> print(circulant(stencil, jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])))
        [[2. 3. 1.]
         [5. 6. 4.]]
    """
    return apply(convolve, _CIRCULANT, "circulant", stencil, y, boundary, method)


def circulant_adjoint(stencil: Array, z: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """K_circ(θ)ᵀ z: the adjoint of `circulant` with the same boundary.

    Args, Returns, Raises: as in `circulant`.
    """
    return apply(correlate, _CIRCULANT, "circulant", stencil, z, boundary, method, adjoint=True)


def circulant_diffusion(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """-K_circ(θ)ᵀ K_circ(θ) y: the diffusion of the circulant reaction-diffusion step.

    Args, Returns, Raises: as in `circulant`.
    """
    return apply(diffuse, _CIRCULANT, "circulant", stencil, y, boundary, method)


def circulant_resolvent(
    stencil: Array,
    y: Array,
    h: float | Array,
    *,
    boundary: ResolventBoundary = "periodic",
    method: SpectralMethod = "auto",
) -> Array:
    """(I + h KᵀK)⁻¹ y with K = K_circ(θ): the implicit diffusion of Eq. (11) with the operator of Eq. (12).

    Args:
        stencil: θ, [*window, C].
        y: features, [..., *grid, C].
        h: time step, a number h ≥ 0.
        boundary: "periodic", or "symmetric" along the grid as in `depthwise_resolvent`, where s is averaged over the
            signs of the grid's frequencies. The channels are always periodic.
        method: "fft", "matmul" or "auto"; not "direct", because the inverse is not a small stencil.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, h < 0, not finite or no number, unknown
            boundary or method.
    """
    if jnp.ndim(h):
        expected = "h must be a number, because the channels are transformed too"
        raise ValueError(f"{expected}, got shape {list(jnp.shape(h))}; call it once for each time step")
    return resolvent(_CIRCULANT, "circulant_resolvent", stencil, y, h, boundary, method)


def as_fully_coupled(stencil: Array) -> Array:
    """Returns the stencil [*window, C_in, C_out] with which `fully_coupled` is K_circ(θ), for θ [*window, C]."""
    channel = np.arange(stencil.shape[-1])
    return jnp.asarray(stencil)[..., (channel[:, None] - channel[None, :]) % len(channel)]


def _filter(function, stencil, method, y, *, mirrored=False):
    """F₃⁻¹(function(λ) ⊙ F₃ y): the channels become one more grid axis, and a single channel remains."""
    grid = y.shape[-stencil.ndim : -1]
    factors = function(symbol_for(method, stencil, grid, mirrored=mirrored, circulant=True))
    return scale_spectrum(y[..., None], factors[..., None], method, mirrored=len(grid) * mirrored)[..., 0]


_CIRCULANT = StencilKind(_filter, coupled=as_fully_coupled)
