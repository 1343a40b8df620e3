"""K_circ(θ): block circulant in the channels, so that F₃ over space and channels makes it diagonal, Eq. (12)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import BOUNDARIES, check_choice, check_features, check_time_step
from lowcost.methods import choose
from lowcost.operators.boundary import with_boundary, with_boundary_adjoint
from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
from lowcost.spectral import apply_symbol, circulant_symbol, power, widen


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
    window = _check("y", y, stencil, boundary)
    method = _choose(method, stencil, y)
    if method == "direct":
        return fully_coupled(circulant_stencil(stencil), y, boundary=boundary, method="direct")
    apply = partial(_apply, lambda λ: λ, stencil, method)
    return with_boundary(apply, widen(y), window, boundary).astype(jnp.result_type(y))


def circulant_adjoint(
    stencil: jax.Array, z: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K_circ(θ)ᵀ z: the adjoint of `circulant` with the same boundary.

    Args, Returns, Raises: as `circulant`.
    """
    window = _check("z", z, stencil, boundary)
    method = _choose(method, stencil, z)
    if method == "direct":
        return fully_coupled_adjoint(circulant_stencil(stencil), z, boundary=boundary, method="direct")
    apply = partial(_apply, jnp.conj, stencil, method)
    return with_boundary_adjoint(apply, widen(z), window, boundary).astype(jnp.result_type(z))


def circulant_diffusion(
    stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """-K_circ(θ)ᵀ K_circ(θ) y: the diffusion of the circulant reaction-diffusion step.

    Args, Returns, Raises: as `circulant`.
    """
    _check("y", y, stencil, boundary)
    method = _choose(method, stencil, y)
    if boundary == "periodic" and method != "direct":
        return _apply(lambda λ: -power(λ), stencil, method, y)
    convolved = circulant(stencil, widen(y), boundary=boundary, method=method)
    return -circulant_adjoint(stencil, convolved, boundary=boundary, method=method).astype(jnp.result_type(y))


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
    check_features("y", y, stencil)
    check_time_step(h)
    method = _choose(method, stencil, y, "circulant_resolvent")
    return _apply(lambda λ: 1 / (1 + h * power(λ)), stencil, method, y)


def circulant_stencil(stencil: jax.Array) -> jax.Array:
    """θ [*window, C] written out as the fully coupled stencil of the same operator, [*window, C_in, C_out]."""
    channel = np.arange(stencil.shape[-1])
    return jnp.asarray(stencil)[..., (channel[:, None] - channel[None, :]) % len(channel)]


def _check(name, y, stencil, boundary):
    check_features(name, y, stencil)
    check_choice("boundary", boundary, BOUNDARIES)
    return stencil.shape[:-1]


def _choose(method, stencil, y, operator="circulant"):
    return choose(method, operator, y.shape[-stencil.ndim : -1], stencil.shape[:-1], y.shape[-1])


def _apply(function, stencil, method, y):
    """F₃⁻¹(function(λ) ⊙ F₃ y): the channels join the grid, and a single channel is left."""
    λ = circulant_symbol(stencil, y.shape[-stencil.ndim : -1])
    return apply_symbol(function(λ)[..., None], y[..., None], method=method)[..., 0]
