"""The layers of a network with their weights, from which its bounds, its cost and its exported forms are made."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowcost.nn.networks import Network
from lowcost.nn.operations import Operation


class Layer(NamedTuple):
    """A layer of a network with its weights, e.g. `layer.module.symbol(layer.grid)` for the steps.

    Attributes:
        name: of the module.
        module: bound to its weights and statistics.
        grid: points per axis of its input.
    """

    name: str
    module: nn.Module
    grid: tuple[int, ...]

    @property
    def skip(self) -> int:
        """1 if the layer's input is kept, -1 if the input that was kept last is added to its result, else 0."""
        return getattr(self.module, "skip", 0)

    def operations(self) -> tuple[Operation, ...]:
        """Returns what the layer computes at inference.

        Raises:
            ValueError: the module has no method `operations`.
        """
        if not hasattr(self.module, "operations"):
            got = f"{type(self.module).__name__} without one"
            remedy = "return what it computes at inference, as the steps of lowcost.nn.steps do"
            raise ValueError(f"{self.name} must have a method operations(grid), got {got}; {remedy}")
        return tuple(self.module.operations(self.grid))


def bound_layers(net: Network, variables: Mapping[str, Any], image_shape: Sequence[int]) -> list[Layer]:
    """net = layer_L ∘ … ∘ layer₁: returns the layers of Section 4's network in the order in which they are applied.

    In a network with a decoder, the results of some layers are sums, see `Layer.skip`.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C].

    Returns:
        Each layer's name, its module bound to its weights, and the grid of its input.

    Raises:
        ValueError: the network cannot take images of this shape.
    """
    layers = []

    def note(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and len(module.path) == 1:
            own = {kind: tree[module.name] for kind, tree in variables.items() if module.name in tree}
            layers.append(Layer(module.name, module.clone(parent=None).bind(own), args[0].shape[1:-1]))
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(note):  # tracing the network visits its layers without computing them
        jax.eval_shape(lambda image: net.apply(variables, image, train=False), image)
    return layers
