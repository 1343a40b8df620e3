"""K_dw(θ): every channel has its own stencil, Eq. (5); its normal operator and the implicit inverse, Eq. (11)."""

import jax
import jax.numpy as jnp

from lowcost.arguments import BOUNDARIES, check_choice, check_features, check_time_step
from lowcost.methods import choose
from lowcost.operators.boundary import with_boundary, with_boundary_adjoint
from lowcost.operators.sliding import slide, slide_adjoint
from lowcost.spectral import apply_symbol, power, symbol, widen


def depthwise(stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto") -> jax.Array:
    """K_dw(θ) y, (K y)_{i,c} = Σ_j θ_{j,c} y_{i+j,c}, j counted from the stencil's centre: Eq. (5).

    Args:
        stencil: θ, [*window, C]; one to three window axes, each of any size up to the grid's.
        y: features, [..., *grid, C].
        boundary: "periodic" as in the paper, "zeros" or "reflect": what lies beyond the grid.
        method: "fft", "matmul" (the DFT as a real matrix product), "direct" (the stencil applied in place) or "auto".
            The result is the same.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.

    Example:
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]  # y_{i+1} - y_i, one channel
        >>> print(depthwise(difference, jnp.array([0.0, 1.0, 4.0, 9.0])[:, None])[:, 0])
        [ 1.  3.  5. -9.]
    """
    check_features("y", y, stencil)
    check_choice("boundary", boundary, BOUNDARIES)
    window = stencil.shape[:-1]
    method = _choose(method, stencil, y)
    if method == "direct":
        return slide(stencil, y, boundary)
    return with_boundary(
        lambda y: apply_symbol(_symbol(stencil, y), y, method=method), widen(y), window, boundary
    ).astype(jnp.result_type(y))


def depthwise_adjoint(
    stencil: jax.Array, z: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K_dw(θ)ᵀ z: the adjoint of `depthwise` with the same boundary, ⟨K y, z⟩ = ⟨y, Kᵀ z⟩.

    Args, Returns, Raises: as `depthwise`.
    """
    check_features("z", z, stencil)
    check_choice("boundary", boundary, BOUNDARIES)
    window = stencil.shape[:-1]
    method = _choose(method, stencil, z)
    if method == "direct":
        return slide_adjoint(stencil, z, boundary)
    return with_boundary_adjoint(
        lambda z: apply_symbol(jnp.conj(_symbol(stencil, z)), z, method=method), widen(z), window, boundary
    ).astype(jnp.result_type(z))


def depthwise_diffusion(
    stencil: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """-K_dw(θ)ᵀ K_dw(θ) y: the diffusion term of Eqs. (8) and (9), symmetric and negative semi-definite.

    Args, Returns, Raises: as `depthwise`.
    """
    check_features("y", y, stencil)
    method = _choose(method, stencil, y, "diffusion" if boundary == "periodic" else "depthwise")
    if boundary == "periodic" and method != "direct":
        return apply_symbol(-power(_symbol(stencil, y)), y, method=method)
    convolved = depthwise(stencil, widen(y), boundary=boundary, method=method)
    return -depthwise_adjoint(stencil, convolved, boundary=boundary, method=method).astype(jnp.result_type(y))


def depthwise_resolvent(stencil: jax.Array, y: jax.Array, h: float | jax.Array, *, method: str = "auto") -> jax.Array:
    """(I + h KᵀK)⁻¹ y with K = K_dw(θ): the implicit diffusion of Eq. (11).

    Never amplifies: its eigenvalues 1 / (1 + h|λ|²) lie in (0, 1] for every θ and h ≥ 0. Periodic grids only, where
    the inverse is diagonal.

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

    Example:
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]
        >>> y = jnp.array([1.0, 0.0, 0.0, 0.0])[:, None]
        >>> print(depthwise_resolvent(difference, y, 1.0)[:, 0].round(3))  # smoother, the mean as before
        [0.467 0.2   0.133 0.2  ]
    """
    check_features("y", y, stencil)
    check_time_step(h)
    return apply_symbol(1 / (1 + h * power(_symbol(stencil, y))), y, method=method)


def _choose(method, stencil, y, operator="depthwise"):
    return choose(method, operator, y.shape[-stencil.ndim : -1], stencil.shape[:-1], y.shape[-1])


def _symbol(stencil, y):
    return symbol(stencil, y.shape[-stencil.ndim : -1])
