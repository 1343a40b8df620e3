"""Advances the reaction-diffusion equation ∂ₜy = -KᵀK y + r(y), Eqs. (1), (8) to (11): the steps of a network."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lowcost.arguments import check_choice, check_floating, check_time_step, promote
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

    With diffusion in f, the step is stable only if h·max|λ|² ≤ 2.

    Args:
        f: y ↦ f(y), e.g. from `reaction_diffusion`.
        y: features, of any shape.
        h: time step, h ≥ 0.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: y is not real floating point.
        ValueError: h < 0 or not finite.
    """
    check_floating("y", y)
    check_time_step(h)
    return (y + h * f(y)).astype(jnp.result_type(y))


def imex_euler(
    resolvent: Callable[[jax.Array, float | jax.Array], jax.Array], reaction: Map, y: jax.Array, h: float | jax.Array
) -> jax.Array:
    """(I + h KᵀK)⁻¹ (y + h r(y)): the semi-implicit step of Eq. (11). Its linear part is stable for every h.

    Args:
        resolvent: (y, h) ↦ (I + h KᵀK)⁻¹ y, e.g. `partial(depthwise_resolvent, stencil)`.
        reaction: y ↦ r(y).
        y: features, of the shape that the resolvent takes.
        h: time step, h ≥ 0.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: y is not real floating point.
        ValueError: h < 0 or not finite.

    Example:
        >>> from functools import partial
        >>> from lowcost import depthwise_resolvent
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]
        >>> step = partial(imex_euler, partial(depthwise_resolvent, difference), jax.nn.relu)
        >>> print(step(jnp.array([1.0, -1.0, 1.0, -1.0])[:, None], 1.0)[:, 0].round(3))
        [0.8 0.2 0.8 0.2]
    """
    check_floating("y", y)
    check_time_step(h)
    return resolvent(y + h * reaction(y), h).astype(jnp.result_type(y))


class Integrator(NamedTuple):
    """y⁺ = R(z) y + h Φ(z) r(y) for each mode, z = h|λ|²: a step of Eq. (8), given by two functions of z.

    Attributes:
        factor: R, by which the step multiplies a mode without reaction; stable if |R| ≤ 1.
        response: Φ, the weight of the reaction, Φ(0) = 1.
    """

    factor: Map
    response: Map


def _phi(z):
    """(1 - e⁻ᶻ) / z and its derivatives, finite at z = 0."""
    small = z < 1e-2  # there the six terms of the series are exact to 1e-15
    safe = jnp.where(small, 1.0, z)  # otherwise the NaN of the branch not taken reaches the gradient
    series = 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6))))
    return jnp.where(small, series, -jnp.expm1(-safe) / safe)


IntegratorName = Literal["forward_euler", "imex_euler", "crank_nicolson", "exponential_euler"]

INTEGRATORS: dict[IntegratorName, Integrator] = {
    "forward_euler": Integrator(lambda z: 1 - z, jnp.ones_like),
    "imex_euler": Integrator(lambda z: 1 / (1 + z), lambda z: 1 / (1 + z)),
    "crank_nicolson": Integrator(lambda z: (1 - z / 2) / (1 + z / 2), lambda z: 1 / (1 + z / 2)),
    "exponential_euler": Integrator(lambda z: jnp.exp(-z), _phi),
}
"""The integrators by name:

- forward_euler, Eq. (9): y + h (-KᵀK y + r(y)).
- imex_euler, Eq. (11): (I + hKᵀK)⁻¹ (y + h r(y)).
- crank_nicolson: (I + h/2 KᵀK)⁻¹ ((I - h/2 KᵀK) y + h r(y)), the trapezoidal rule for the diffusion and Euler's for
  the reaction. It is of second order in the diffusion, and stable, but hardly damps the fastest modes.
- exponential_euler: exp(-hKᵀK) y + h φ(hKᵀK) r(y), φ(z) = (1 - e⁻ᶻ) / z. The diffusion is exact, the reaction constant
  over the step.
"""


def as_integrator(integrator: IntegratorName | Integrator) -> Integrator:
    """name ↦ (R, Φ): the integrator of that name, e.g. of Eqs. (9), (11); an `Integrator` is returned as it is.

    Raises:
        ValueError: unknown integrator.
    """
    if isinstance(integrator, Integrator):
        return integrator
    check_choice("integrator", integrator, tuple(INTEGRATORS))
    return INTEGRATORS[integrator]


def spectral_step(
    integrator: IntegratorName | Integrator,
    squared_modulus: jax.Array,
    reaction: Map,
    y: jax.Array,
    h: float | jax.Array,
    *,
    method: SpectralMethod = "auto",
) -> jax.Array:
    """F⁻¹(R(h|λ|²) ⊙ F y) + h F⁻¹(Φ(h|λ|²) ⊙ F r(y)): one step of Eq. (8) by any integrator.

    The functions R and Φ define the integrator: R multiplies the features, and Φ the reaction.

    Args:
        integrator: "forward_euler" (Eq. 9), "imex_euler" (Eq. 11), "crank_nicolson", "exponential_euler", or an
            `Integrator` with your own functions R and Φ.
        squared_modulus: |λ|², [*grid, C], the symbol of KᵀK.
        reaction: y ↦ r(y).
        y: features, [..., *grid, C].
        h: time step, h ≥ 0.
        method: "fft", "matmul" or "auto", as in `apply_symbol`.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: y is not real floating point.
        ValueError: unknown integrator or method, h < 0 or not finite, shapes that do not match.
    """
    check_floating("y", y)
    check_time_step(h)
    factor, response = as_integrator(integrator)
    z = h * squared_modulus
    diffused = apply_symbol(factor(z), promote(y), method=method)
    reacted = apply_symbol(response(z), promote(reaction(y)), method=method)
    return (diffused + h * reacted).astype(jnp.result_type(y))
