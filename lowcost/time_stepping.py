"""Time stepping of ∂ₜy = -KᵀK y + r(y): a reaction-diffusion equation becomes a network's step, Eqs. (1), (8)-(11)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lowcost.arguments import check_time_step
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

    Raises:
        ValueError: h < 0 or not finite.
    """
    check_time_step(h)
    return y + h * f(y)


def imex_euler(
    resolvent: Callable[[jax.Array, float | jax.Array], jax.Array], reaction: Map, y: jax.Array, h: float | jax.Array
) -> jax.Array:
    """(I + h KᵀK)⁻¹ (y + h r(y)): the semi-implicit step of Eq. (11), stable for every h in its linear part.

    Args:
        resolvent: (y, h) ↦ (I + h KᵀK)⁻¹ y, e.g. `partial(depthwise_resolvent, stencil)`.
        reaction: y ↦ r(y).
        y: features.
        h: time step, h ≥ 0.

    Raises:
        ValueError: h < 0 or not finite.
    """
    check_time_step(h)
    return resolvent(y + h * reaction(y), h)


def crank_nicolson(power: jax.Array, reaction: Map, y: jax.Array, h: float | jax.Array) -> jax.Array:
    """(I + h/2 KᵀK)⁻¹ ((I - h/2 KᵀK) y + h r(y)): the trapezoidal rule for the diffusion, Euler for the reaction.

    Second order in the diffusion; its factor (1 - z/2) / (1 + z/2), z = h|λ|², stays within (-1, 1] but does not damp
    the fastest modes.

    Args:
        power: |λ|², [*grid, C], the symbol of KᵀK.
        reaction: y ↦ r(y).
        y: features, [..., *grid, C].
        h: time step, h ≥ 0.

    Raises:
        ValueError: h < 0 or not finite.
    """
    check_time_step(h)
    # (1 - z/2) / (1 + z/2) = 2 / (1 + z/2) - 1, so that one filter does both parts.
    return apply_symbol(1 / (1 + h * power / 2), 2 * y + h * reaction(y)) - y


def exponential_euler(power: jax.Array, reaction: Map, y: jax.Array, h: float | jax.Array) -> jax.Array:
    """exp(-hKᵀK) y + h φ(hKᵀK) r(y), φ(z) = (1 - e⁻ᶻ) / z: the diffusion exactly, the reaction held over the step.

    Args, Raises: as `crank_nicolson`.
    """
    check_time_step(h)
    z = h * power
    return apply_symbol(jnp.exp(-z), y) + h * apply_symbol(_phi(z), reaction(y))


def _phi(z):
    """(1 - e⁻ᶻ) / z and its derivatives, finite at z = 0."""
    small = z < 1e-2
    safe = jnp.where(small, 1.0, z)  # where alone would let the other branch's NaN into the gradient
    series = 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6))))
    return jnp.where(small, series, -jnp.expm1(-safe) / safe)


INTEGRATORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "forward_euler": lambda z: 1 - z,
    "imex_euler": lambda z: 1 / (1 + z),
    "crank_nicolson": lambda z: (1 - z / 2) / (1 + z / 2),
    "exponential_euler": lambda z: jnp.exp(-z),
}
"""By name, the factor R(h|λ|²) by which a step multiplies a mode of eigenvalue |λ|² when there is no reaction."""
