"""Stability read off a trained network: exact linear bounds layer by layer, and a Lipschitz bound of the whole.

At evaluation every layer but ReLU is linear and its norm exact, by its symbol or a small singular value problem; ReLU
never stretches. So each step is bounded by its symbol and the norm of its reaction, and the network by the product.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowcost.analysis import amplification, spectral_norm
from lowcost.nn.network import Connecting, Halving, Mean, Network, Opening
from lowcost.nn.steps import EPSILON, ExplicitRDStep, ImplicitRDStep
from lowcost.operators.fully_coupled import fully_coupled
from lowcost.spectral import power, symbol


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
    """The bounds of every layer of a network on images of this shape, with its weights and running statistics.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C]: the symbols depend on the grid.

    Returns:
        The layers' bounds; their product bounds the network at evaluation in the Euclidean norm.

    Raises:
        ValueError: the network cannot take images of this shape, or has a layer whose bound is not known.
    """
    met: list[tuple[str, nn.Module, Any, tuple[int, ...]]] = []

    def note(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and len(module.path) == 1:
            if type(module) not in _BOUNDS:
                raise ValueError(f"stability_report knows no bound of {type(module).__name__} ({module.path[0]})")
            met.append((module.path[0], module, module.variables, args[0].shape[1:-1]))
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(note):  # the layers are met by tracing the network, without computing it
        jax.eval_shape(lambda image: net.apply(variables, image, train=False), image)
    layers = []
    for name, module, weights, grid in met:
        lipschitz, *rest = _BOUNDS[type(module)](module, weights, grid)
        layers.append(LayerBounds(name, float(lipschitz), *rest))
    return StabilityReport(tuple(layers))


def _step(integrator, module, variables, grid):
    """R y + h Φ r(y) with ‖R‖, ‖Φ‖ by the symbol and ‖r‖ = ‖N M‖, as ReLU never stretches."""
    weights, statistics = variables["params"], variables["batch_stats"]["reaction"]
    λ = symbol(weights["stencil"], grid)
    factors = amplification(integrator, λ, module.h)
    reaction = _norm(_normalized(weights["reaction"]["matrix"], statistics))
    if integrator == "imex_euler":  # the resolvent is applied to both parts
        lipschitz = jnp.max(jnp.abs(factors)) * (1 + module.h * reaction)
    else:
        lipschitz = jnp.max(jnp.abs(factors)) + module.h * reaction
    stiffness = float(module.h * jnp.max(power(λ)))
    stable = integrator != "forward_euler" or stiffness <= 2
    return lipschitz, stiffness, (float(factors.min()), float(factors.max())), stable


def _opening(module, variables, grid):
    stencil = _normalized(variables["params"]["stencil"], variables["batch_stats"])
    return (spectral_norm(partial(fully_coupled, stencil), grid, stencil.shape[-2]),)


def _connecting(module, variables, grid):
    """‖N [I; K]‖² = max over channels and frequencies of s₁² + s₂²|λ|²."""
    λ = symbol(variables["params"]["stencil"], grid)
    first, second = jnp.split(_scale(variables["batch_stats"]) ** 2, 2)
    dims = range(len(grid))
    return (jnp.sqrt(jnp.max(jnp.expand_dims(first, dims) + jnp.expand_dims(second, dims) * power(λ))),)


def _norm(matrix):
    return np.linalg.norm(np.asarray(matrix), ord=2)


def _normalized(weights, statistics):
    """The weights [..., C_out] of N ∘ weights, without the shift."""
    return weights * jnp.expand_dims(_scale(statistics), range(weights.ndim - 1))


def _scale(statistics):
    """The factor of each channel in N at evaluation."""
    return 1 / jnp.sqrt(statistics["normalize"]["statistics"]["var"] + EPSILON)


_BOUNDS: dict[type, Callable[..., tuple]] = {
    ExplicitRDStep: partial(_step, "forward_euler"),
    ImplicitRDStep: partial(_step, "imex_euler"),
    Opening: _opening,
    Connecting: _connecting,
    Halving: lambda module, variables, grid: (2 ** (-len(grid) / 2),),
    Mean: lambda module, variables, grid: (math.prod(grid) ** -0.5,),
    nn.Dense: lambda module, variables, grid: (_norm(variables["params"]["kernel"]),),
}
