"""Time stepping of ∂ₜy = -KᵀK y + r(y): a reaction-diffusion equation becomes a network's step, Eqs. (1), (8)-(11)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lowcost.arguments import check_choice, check_time_step, promote
from lowcost.methods import SpectralMethod
from lowcost.spectral import apply_symbol

Map = Callable[[jax.Array], jax.Array]


def reaction_diffusion(diffusion: Map, reaction: Map) -> Map:
    """f(y) = -KᵀK y + r(y): the right-hand side of Eq. (8).

    Args:
        diffusion: y ↦ -KᵀK y, e.g. `partial(depthwise_diffusion, stencil)`.
        reaction: y ↦ r(y), in the paper σ(N(M y)).
    """
    return lambda y: diffusion(y) + reaction(y)


def forward_euler(f: Map, y: jax.Array, h: float | jax.Array) -> jax.Array:
    """y + h f(y): Eq. (1) for h = 1, and the explicit step of Eq. (9).

    With diffusion in f it is stable only while h·max|λ|² ≤ 2.

    Args:
        f: y ↦ f(y), e.g. from `reaction_diffusion`.
        y: features, of any shape.
        h: time step, h ≥ 0.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        ValueError: h < 0 or not finite.
    """
    check_time_step(h)
    return (y + h * f(y)).astype(jnp.result_type(y))


def imex_euler(
    resolvent: Callable[[jax.Array, float | jax.Array], jax.Array], reaction: Map, y: jax.Array, h: float | jax.Array
) -> jax.Array:
    """(I + h KᵀK)⁻¹ (y + h r(y)): the semi-implicit step of Eq. (11), stable for every h in its linear part.

    Args:
        resolvent: (y, h) ↦ (I + h KᵀK)⁻¹ y, e.g. `partial(depthwise_resolvent, stencil)`.
        reaction: y ↦ r(y).
        y: features, of the shape that the resolvent takes.
        h: time step, h ≥ 0.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        ValueError: h < 0 or not finite.

    Example:
        >>> from functools import partial
        >>> from lowcost import depthwise_resolvent
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]
        >>> step = partial(imex_euler, partial(depthwise_resolvent, difference), jax.nn.relu)
        >>> print(step(jnp.array([1.0, -1.0, 1.0, -1.0])[:, None], 1.0)[:, 0].round(3))
        [0.8 0.2 0.8 0.2]
    """
    check_time_step(h)
    return resolvent(y + h * reaction(y), h).astype(jnp.result_type(y))


class Integrator(NamedTuple):
    """A step as functions of z = h|λ|²: y⁺ = R(z) y + h Φ(z) r(y), mode by mode.

    Attributes:
        factor: R, what it does to the diffusion; stable while |R| ≤ 1.
        response: Φ, how it weighs the reaction, Φ(0) = 1.
    """

    factor: Map
    response: Map


def _phi(z):
    """(1 - e⁻ᶻ) / z and its derivatives, finite at z = 0."""
    small = z < 1e-2
    safe = jnp.where(small, 1.0, z)  # where alone would let the other branch's NaN into the gradient
    series = 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6))))
    return jnp.where(small, series, -jnp.expm1(-safe) / safe)


INTEGRATORS = {
    "forward_euler": Integrator(lambda z: 1 - z, jnp.ones_like),
    "imex_euler": Integrator(lambda z: 1 / (1 + z), lambda z: 1 / (1 + z)),
    "crank_nicolson": Integrator(lambda z: (1 - z / 2) / (1 + z / 2), lambda z: 1 / (1 + z / 2)),
    "exponential_euler": Integrator(lambda z: jnp.exp(-z), _phi),
}
"""By name: Eq. (9), Eq. (11), the trapezoidal rule, and the exact diffusion with the reaction held over the step."""


def spectral_step(
    integrator: str | Integrator,
    squared_modulus: jax.Array,
    reaction: Map,
    y: jax.Array,
    h: float | jax.Array,
    *,
    method: SpectralMethod = "auto",
) -> jax.Array:
    """F⁻¹(R(h|λ|²) ⊙ F y) + h F⁻¹(Φ(h|λ|²) ⊙ F r(y)): a step of Eq. (8), chosen by its functions of |λ|².

    Args:
        integrator: "forward_euler", "imex_euler", "crank_nicolson", "exponential_euler", or an `Integrator`.
        squared_modulus: |λ|², [*grid, C], the symbol of KᵀK.
        reaction: y ↦ r(y).
        y: features, [..., *grid, C].
        h: time step, h ≥ 0.
        method: "fft", "matmul" or "auto", as in `apply_symbol`.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        ValueError: unknown integrator or method, h < 0 or not finite, shapes that do not match.
    """
    check_time_step(h)
    if isinstance(integrator, str):
        check_choice("integrator", integrator, tuple(INTEGRATORS))
        integrator = INTEGRATORS[integrator]
    z = h * squared_modulus
    diffused = apply_symbol(integrator.factor(z), promote(y), method=method)
    reacted = apply_symbol(integrator.response(z), promote(reaction(y)), method=method)
    return (diffused + h * reacted).astype(jnp.result_type(y))


def crank_nicolson(squared_modulus: jax.Array, reaction: Map, y: jax.Array, h: float | jax.Array) -> jax.Array:
    """(I + h/2 KᵀK)⁻¹ ((I - h/2 KᵀK) y + h r(y)): the trapezoidal rule for the diffusion, Euler for the reaction.

    Second order in the diffusion; its factor (1 - z/2) / (1 + z/2), z = h|λ|², stays within (-1, 1] but does not damp
    the fastest modes.

    Args, Returns, Raises: as `spectral_step`.
    """
    return spectral_step("crank_nicolson", squared_modulus, reaction, y, h)


def exponential_euler(squared_modulus: jax.Array, reaction: Map, y: jax.Array, h: float | jax.Array) -> jax.Array:
    """exp(-hKᵀK) y + h φ(hKᵀK) r(y), φ(z) = (1 - e⁻ᶻ) / z: the diffusion exactly, the reaction held over the step.

    Args, Returns, Raises: as `spectral_step`.
    """
    return spectral_step("exponential_euler", squared_modulus, reaction, y, h)
