"""Lists the layers of a network with their weights, from which its bounds, its cost and its exported forms are made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowcost.nn.networks import Network, check_network
from lowcost.nn.operations import Operation
from lowcost.nn.transitions import Connecting, Expanding

T = TypeVar("T")


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
    def keeps_input(self) -> bool:
        """Whether the decoder needs the layer's input."""
        return isinstance(self.module, Connecting) and self.module.keeps_input

    @property
    def adds_kept(self) -> bool:
        """Whether the input that was kept last is added to the layer's result."""
        return isinstance(self.module, Expanding)

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


def chain(layers: Iterable[Any], start: T, apply: Callable[[Any, T], T], add: Callable[[Any, Any], T]) -> T:
    """Applies the layers one after another to a state, and adds the states that a decoder needs again.

    Args:
        layers: in their order; `Layer`s, or others with its properties `keeps_input` and `adds_kept`.
        start: the state before the first layer, such as features or a bound.
        apply: (layer, state) → the state after it.
        add: (state, kept state) → their sum.

    Returns:
        The last state.
    """
    state, kept = start, []
    for layer in layers:
        if layer.keeps_input:
            kept.append(state)
        state = apply(layer, state)
        if layer.adds_kept:
            state = add(state, kept.pop())
    return state


def variable_shapes(net: Network, image_shape: Sequence[int]) -> dict[str, Any]:
    """Returns the shapes and dtypes of {"params", "batch_stats"} of a network, by tracing it.

    Raises:
        TypeError: net is no `Network`.
        ValueError: the network cannot take images of this shape.
    """
    check_network(net)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    return {name: shapes[name] for name in ("params", "batch_stats")}


def blank_layers(net: Network, image_shape: Sequence[int]) -> list[Layer]:
    """Returns the layers of `bound_layers` with weights and statistics of 1, so that no zero is a weight.

    Raises:
        TypeError, ValueError: as in `bound_layers`.
    """
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variable_shapes(net, image_shape))
    return bound_layers(net, ones, image_shape)


def bound_layers(net: Network, variables: Mapping[str, Any], image_shape: Sequence[int]) -> list[Layer]:
    """net = layer_L ∘ … ∘ layer₁: returns the layers of Section 4's network in the order in which they are applied.

    In a network with a decoder, inputs of some layers are added to results of others, see `chain`.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C].

    Returns:
        Each layer's name, its module bound to its weights, and the grid of its input.

    Raises:
        TypeError: net is no `Network`.
        ValueError: the network cannot take images of this shape.
    """
    check_network(net)
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
