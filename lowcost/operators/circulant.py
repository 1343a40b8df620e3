"""K_circ(θ): block circulant in the channels, so that F₃ over space and channels makes it diagonal, Eq. (12)."""

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.operators.forms import Ways, apply, convolve, correlate, diffuse, resolvent
from lowcost.operators.fully_coupled import slide_coupled, slide_coupled_adjoint
from lowcost.spectral import circulant_symbol, scale_spectrum


def circulant(stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto") -> jax.Array:
    """K_circ(θ) y, block (i, j) = C(θ^{(j-i mod c)}): Eq. (12), computed as F₃⁻¹(λ ⊙ F₃ y).

    Args:
        stencil: θ, [*window, C]; slice p couples channel i to channel i + p mod C.
        y: features, [..., *grid, C].
        boundary: "periodic", "zeros" or "reflect" of the grid; the channels are always periodic.
        method: "fft", "matmul" (the DFTs as real matrix products), "direct" (`fully_coupled` with the stencil
            written out as [*window, C, C]) or "auto". The result is the same.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.

    Example:
        >>> stencil = jnp.array([[0.0, 1.0, 0.0]])  # a window of one point; slice 1 couples channel i to channel i + 1
        >>> print(circulant(stencil, jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])))
        [[2. 3. 1.]
         [5. 6. 4.]]
    """
    return apply(convolve, _WAYS, "circulant", "y", stencil, y, boundary, method)


def circulant_adjoint(
    stencil: jax.Array, z: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K_circ(θ)ᵀ z: the adjoint of `circulant` with the same boundary.

    Args, Returns, Raises: as `circulant`.
    """
    return apply(correlate, _WAYS, "circulant", "z", stencil, z, boundary, method)


def circulant_diffusion(
    stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """-K_circ(θ)ᵀ K_circ(θ) y: the diffusion of the circulant reaction-diffusion step.

    Args, Returns, Raises: as `circulant`.
    """
    return apply(diffuse, _WAYS, "circulant", "y", stencil, y, boundary, method)


def circulant_resolvent(stencil: jax.Array, y: jax.Array, h: float | jax.Array, *, method: str = "auto") -> jax.Array:
    """(I + h KᵀK)⁻¹ y with K = K_circ(θ): Eq. (11) with the operator of Eq. (12), by the same F₃ symbol.

    Args:
        stencil: θ, [*window, C].
        y: features, [..., *grid, C].
        h: time step, h ≥ 0.
        method: "fft", "matmul" or "auto"; an inverse has no stencil to apply directly.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, h < 0 or not finite, unknown method.
    """
    return resolvent(_WAYS, "circulant_resolvent", stencil, y, h, method)


def circulant_stencil(stencil: jax.Array) -> jax.Array:
    """θ [*window, C] written out as the fully coupled stencil of the same operator, [*window, C_in, C_out]."""
    channel = np.arange(stencil.shape[-1])
    return jnp.asarray(stencil)[..., (channel[:, None] - channel[None, :]) % len(channel)]


def _slide(stencil, y, boundary):
    return slide_coupled(circulant_stencil(stencil), y, boundary)


def _slide_adjoint(stencil, z, boundary):
    return slide_coupled_adjoint(circulant_stencil(stencil), z, boundary)


def _filter(function, stencil, method, y):
    """F₃⁻¹(function(λ) ⊙ F₃ y): the channels join the grid, and a single channel is left."""
    λ = circulant_symbol(stencil, y.shape[-stencil.ndim : -1])
    return scale_spectrum(y[..., None], function(λ)[..., None], method)[..., 0]


_WAYS = Ways(_slide, _slide_adjoint, _filter)
