"""Stability, Section 3.2.2, of a trained network: exact linear bounds of each layer, a Lipschitz bound of the whole.

At evaluation every layer but ReLU is linear and its norm exact, by its symbol or a small singular value problem; ReLU
never stretches. So each step is bounded by its symbol and the norm of its reaction, and the network by the product.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lowcost.analysis import amplification
from lowcost.nn import steps
from lowcost.nn.networks import AveragePool, Connecting, GlobalAveragePool, Network, Opening, bound_layers
from lowcost.spectral import coupled_symbol, squared_modulus


class LayerBounds(NamedTuple):
    """What one layer does to the Euclidean norm of a perturbation, at evaluation.

    Attributes:
        name: of the module.
        lipschitz: ‖f(y) - f(z)‖ ≤ lipschitz · ‖y - z‖; the norm itself, to rounding, for a linear layer.
        stiffness: h·max|λ|² of a reaction-diffusion step, None for other layers.
        amplification: smallest and largest factor R(h|λ|²) of its linear part.
        stable: whether |R| ≤ 1 for every frequency; for the explicit step, whether h·max|λ|² ≤ 2.
    """

    name: str
    lipschitz: float
    stiffness: float | None = None
    amplification: tuple[float, float] | None = None
    stable: bool = True


class StabilityReport(NamedTuple):
    """The layers of a network in the order in which they are applied.

    Attributes:
        layers: their bounds.
    """

    layers: tuple[LayerBounds, ...]

    @property
    def lipschitz(self) -> float:
        """Π of the layers' bounds: ‖net(y) - net(z)‖ ≤ lipschitz · ‖y - z‖ for any two images."""
        return math.prod(layer.lipschitz for layer in self.layers)

    @property
    def unstable(self) -> tuple[str, ...]:
        """The names of the steps whose linear part amplifies: explicit ones with h·max|λ|² > 2."""
        return tuple(layer.name for layer in self.layers if not layer.stable)

    def __str__(self) -> str:
        """A table, a line a layer."""
        lines = [f"{'layer':<20} {'h max|λ|²':>10} {'R(h|λ|²)':>18} {'Lipschitz ≤':>12}"]
        for layer in self.layers:
            stiffness = "" if layer.stiffness is None else f"{layer.stiffness:.4g}"
            factors = "" if layer.amplification is None else "[{:.3f}, {:.3f}]".format(*layer.amplification)
            note = "" if layer.stable else "  unstable: h max|λ|² > 2"
            lines.append(f"{layer.name:<20} {stiffness:>10} {factors:>18} {layer.lipschitz:>12.4g}{note}")
        return "\n".join([*lines, f"{'network':<20} {'':>10} {'':>18} {self.lipschitz:>12.4g}"])


def stability_report(net: Network, variables: Any, image_shape: Sequence[int]) -> StabilityReport:
    """‖f_l(y) - f_l(z)‖ ≤ L_l ‖y - z‖: bounds of every layer f_l on images of this shape, after Section 3.2.2.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C]: the symbols depend on the grid.

    Returns:
        The layers' bounds; their product bounds the network at evaluation in the Euclidean norm.

    Raises:
        ValueError: the network cannot take images of this shape, or has a layer whose bound is not known.
    """
    layers = []
    for name, module, grid in bound_layers(net, variables, image_shape):
        if type(module) not in _BOUNDS:
            raise ValueError(f"stability_report knows no bound of {type(module).__name__} ({name})")
        lipschitz, *rest = _BOUNDS[type(module)](module, grid)
        layers.append(LayerBounds(name, float(lipschitz), *rest))
    return StabilityReport(tuple(layers))


def _diffusion(integrator, step, grid):
    """R y + h Φ r(y) with ‖R‖, ‖Φ‖ by the symbol and ‖r‖ = ‖N M‖, as ReLU never stretches."""
    λ = step.symbol(grid)
    factors = amplification(integrator, λ, step.h)
    reaction = _reaction(step)
    if integrator == "imex_euler":  # the resolvent is applied to both parts
        lipschitz = jnp.max(jnp.abs(factors)) * (1 + step.h * reaction)
    else:
        lipschitz = jnp.max(jnp.abs(factors)) + step.h * reaction
    stiffness = float(step.h * jnp.max(squared_modulus(λ)))
    stable = integrator != "forward_euler" or stiffness <= 2
    return lipschitz, stiffness, (float(factors.min()), float(factors.max())), stable


def _residual(step, grid):
    """1 + h ‖N K₁‖ ‖K₂‖, with the matrix of every frequency."""
    first, second = step.symbol(grid)
    return (1 + step.h * _norms(_normalized(first, step)) * _norms(second),)


def _mobilenet(step, grid):
    """‖N K_dw‖ ‖N M‖."""
    return (jnp.max(jnp.abs(_normalized(step.symbol(grid), step))) * _reaction(step),)


def _opening(layer, grid):
    return (_norms(coupled_symbol(_normalized(layer.variables["params"]["stencil"], layer), grid)),)


def _connecting(layer, grid):
    """‖N [I; K]‖² = max over channels and frequencies of s₁² + s₂²|λ|²."""
    first, second = jnp.split(_scale(layer.variables["batch_stats"]) ** 2, 2)
    dims = range(len(grid))
    squares = jnp.expand_dims(first, dims) + jnp.expand_dims(second, dims) * squared_modulus(layer.symbol(grid))
    return (jnp.sqrt(jnp.max(squares)),)


def _reaction(step):
    """‖N M‖."""
    matrix, statistics = (step.variables[kind]["reaction"] for kind in ("params", "batch_stats"))
    return _norms(matrix["matrix"] * _scale(statistics)[None])


def _norms(matrices):
    """max ‖·‖₂ over matrices [..., C_in, C_out]."""
    return jnp.max(jnp.linalg.norm(matrices, ord=2, axis=(-2, -1)))


def _normalized(weights, layer):
    """Weights or symbols [..., C_out] of N ∘ K, without the shift, N being the layer's own."""
    return weights * jnp.expand_dims(_scale(layer.variables["batch_stats"]), range(weights.ndim - 1))


def _scale(statistics):
    """The factor of each channel in N at evaluation."""
    return 1 / jnp.sqrt(statistics["normalize"]["var"] + steps.EPSILON)


_BOUNDS: dict[type, Callable[..., tuple]] = {
    steps.ResNetStep: _residual,
    steps.LinearMixStep: _residual,
    steps.MobileNetStep: _mobilenet,
    steps.ExplicitRDStep: partial(_diffusion, "forward_euler"),
    steps.ImplicitRDStep: partial(_diffusion, "imex_euler"),
    steps.CirculantRDStep: partial(_diffusion, "forward_euler"),
    steps.ImplicitCirculantRDStep: partial(_diffusion, "imex_euler"),
    Opening: _opening,
    Connecting: _connecting,
    AveragePool: lambda layer, grid: (2 ** (-len(grid) / 2),),
    GlobalAveragePool: lambda layer, grid: (math.prod(grid) ** -0.5,),
    nn.Dense: lambda layer, grid: (_norms(layer.variables["params"]["kernel"]),),
}
