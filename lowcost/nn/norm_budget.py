"""Keeps the Lipschitz bound of a network with fixed scales at or below a budget while it trains.

The network's bound is the product of the bounds of its layers. All layers between the opening and the classifier have
the same bound s > 1. The opening and the classifier set the scale of the logits, and may use more: the exponents of s
in the bounds of these two add up to that of all others. Each layer states by `weight_limits(bound)` the operator norms
of its weights that suffice. After each optimiser step, weights with larger norms are scaled down. The limits are balls
of norms, so that moving averages of such weights keep to them too.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from lowcost.nn import operations as ops
from lowcost.nn.limits import Limits, within
from lowcost.nn.networks import Network
from lowcost.nn.stability import lipschitz
from lowcost.nn.structure import Layer, blank_layers, chain
from lowcost.nn.transitions import Connecting, Expanding

Projection = Callable[[Any], Any]
"""Weights of a network, or of some of its layers → the same, scaled down to their limits."""


def keep_norms(project: Projection) -> optax.GradientTransformation:
    """θ ← project(θ + update): the last part of an optimiser.

    Args:
        project: see `projection`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowcost.nn import network
        >>> net = network("implicit_rd", (4, 8), num_classes=10, fixed_scale=True)
        >>> project = projection(net, image_shape=(16, 16, 3), budget=100.0)
        >>> optimizer = optax.chain(optax.adam(0.01), keep_norms(project))
        >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        >>> params = project(variables["params"])  # before the first step
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("params must be the weights that are updated, got None; pass them to update")
        return jax.tree.map(operator.sub, project(optax.apply_updates(params, updates)), params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def projection(net: Network, image_shape: Sequence[int], budget: float) -> Projection:
    """Returns params → params with which ‖net(y) - net(z)‖ ≤ budget · ‖y - z‖.

    The bound is that of `stability_report`, in exact arithmetic and in the Euclidean norm. Finding the norms takes
    products of matrices, for fully coupled stencils at each frequency; they are slow only in the steps of "resnet".

    Args:
        net: with `fixed_scale`, of layers that have a method `weight_limits`.
        image_shape: [*grid, C].
        budget: the bound.

    Raises:
        TypeError: net is no `Network`.
        ValueError: a network without fixed scales, a layer without `weight_limits`, or a budget that is not finite or
            too small for the network.
    """
    layers = blank_layers(net, image_shape)
    limits, grids = _limits(layers, budget, masked=net.masked), {layer.name: layer.grid for layer in layers}

    def project(params: Any) -> Any:
        return {name: within(x, limits[name], grids[name]) if name in limits else x for name, x in params.items()}

    return project


def _limits(layers: Sequence[Layer], budget: float, *, masked: bool) -> dict[str, Limits]:
    """Returns layer → the limits of its weights' operator norms with which the network's bound is the budget."""
    for layer in layers:
        _check(layer)
    weighted = [layer.name for layer in layers if _has_weights(layer)]
    exponents = dict.fromkeys(weighted, 1.0) | dict.fromkeys((weighted[0], weighted[-1]), (len(weighted) - 2) / 2)
    factors = {layer.name: _fixed_factor(layer, masked=masked) for layer in layers}

    def bound(s: float) -> float:
        def of_layer(layer: Layer, so_far: float) -> float:
            return so_far * factors[layer.name] * s ** exponents.get(layer.name, 0.0)

        return chain(layers, 1.0, of_layer, operator.add)

    if not bound(1.0) < budget < math.inf:
        reason = "the bound of this network with layers of bound 1"
        raise ValueError(f"budget must be finite and above {bound(1.0):.3g}, {reason}, got {budget}; choose another")
    low, high = 1.0, 2.0
    while bound(high) < budget:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if bound(middle) <= budget else (low, middle)
    modules = {layer.name: layer.module for layer in layers}
    return {name: modules[name].weight_limits(low**exponent) for name, exponent in exponents.items()}


def _check(layer: Layer) -> None:
    """Raises ValueError unless the weights of the layer can bound it."""
    paths = jax.tree_util.tree_leaves_with_path(layer.module.variables.get("batch_stats", {}))
    if any(path[-1].key == "var" for path, _ in paths):
        got = "one that divides by a deviation"
        remedy = "which undoes every limit of the weights; make the network and its steps with fixed_scale=True"
        raise ValueError(f"{layer.name} must have normalisations with fixed_scale=True, got {got}, {remedy}")
    if _has_weights(layer) and not hasattr(layer.module, "weight_limits"):
        got = f"{type(layer.module).__name__} without one"
        raise ValueError(f"{layer.name} must have a method weight_limits(bound), got {got}; see docs/own_steps.md")


def _has_weights(layer: Layer) -> bool:
    return bool(layer.module.variables.get("params"))


def _fixed_factor(layer: Layer, *, masked: bool) -> float:
    """Returns the bound of what no weight scales: of the whole layer if it has no weights, else of its pooling."""
    averages = (ops.AveragePool, ops.GlobalAveragePool)
    fixed: Sequence[ops.Operation] = ()
    if not _has_weights(layer):
        fixed = layer.operations()
    elif isinstance(layer.module, Connecting | Expanding):
        kinds = (ops.Upsample,) if masked else (ops.Upsample, *averages)  # as in `stability_report`
        fixed = [operation for operation in layer.operations() if isinstance(operation, kinds)]
    return lipschitz(fixed, layer.grid)
