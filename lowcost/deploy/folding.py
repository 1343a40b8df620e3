"""Folds a trained network of Section 4 into constants: N into the weights before it, h into the reaction."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.nn.networks import Network, check_network, check_scaled
from lowcost.nn.operations import Concatenate, Depthwise, Filter, Operation, Sum, run
from lowcost.nn.stability import lipschitz
from lowcost.nn.structure import bound_layers, chain


class FoldedLayer(NamedTuple):
    """A layer of the network, as operations.

    Attributes:
        name: of the Flax module.
        operations: to apply one after another.
        lipschitz: ‖f(y) - f(z)‖ ≤ lipschitz · ‖y - z‖ of the layer as trained.
        keeps_input, adds_kept: as in `lowcost.nn.structure.Layer`.
    """

    name: str
    operations: tuple[Operation, ...]
    lipschitz: float
    keeps_input: bool = False
    adds_kept: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """A network of Section 4 at inference: `folded(images)` → logits; jit it as any function.

    Attributes:
        layers: in the order in which they are applied.
        image_shape: [*grid, C], the only shape of images that it takes.
    """

    layers: tuple[FoldedLayer, ...]
    image_shape: tuple[int, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, *grid, C], as the network takes them → logits [B, num_classes], float32; see `Network`.

        Raises:
            TypeError: images are integers.
            ValueError: images of another shape.
        """
        return chain(self.layers, self.checked(images), lambda layer, y: run(layer.operations, y), jnp.add)

    def checked(self, images: jax.Array) -> jax.Array:
        """Returns the images in float32, after a check that they have the shape for which the network was folded."""
        if images.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            expected = f"images must be [B, {shape}], the shape for which the network was folded"
            raise ValueError(f"{expected}, got shape {list(images.shape)}; fold the network for this shape")
        check_scaled(images)
        return images.astype(jnp.float32)


def fold(net: Network, variables: Mapping[str, Any], image_shape: Sequence[int]) -> Folded:
    """N(K y) = (a·K) y + b: folds the normalisations of Section 4's network into its weights.

    The logits agree with those of the network to 1e-5 of the largest one. The constants a and b are computed from the
    running statistics. The time step is multiplied into the reaction's weights, because h σ(x) = σ(h x). If K has m
    points per axis, the explicit diffusion y - hKᵀK y becomes a single stencil of 2m - 1 points. The implicit step
    stores R = 1 / (1 + h|λ|²) for this grid. Weights are folded in float64 and stored in float32; a network that
    computes in bfloat16 is folded to float32 too.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, of one network: if several seeds were trained at once, select one of them.
        image_shape: [*grid, C] of the images.

    Returns:
        The folded network.

    Raises:
        TypeError: net is no `Network`.
        ValueError: the network cannot take images of this shape, is masked, or a layer has no method `operations`
            (docs/own_steps.md).
    """
    check_network(net)
    if net.masked:
        remedy = "train on signals resampled to one length, --length N"
        raise ValueError(f"net must have masked=False to be folded, got masked=True; {remedy}")
    layers = []
    for layer in bound_layers(net, variables, image_shape):
        operations = layer.operations()
        bound = lipschitz(operations, layer.grid)
        folded = tuple(map(_constant, operations))
        layers.append(FoldedLayer(layer.name, folded, bound, layer.keeps_input, layer.adds_kept))
    return Folded(tuple(layers), tuple(image_shape))


def cut(filter_: Filter, radius: Sequence[int]) -> Depthwise:
    """g_x for |x_i| ≤ radius_i: the impulse response of a filter as a stencil; not in the paper.

    Args:
        filter_: of K_dw.
        radius: points on each side of the stencil's centre, one number per axis.

    Returns:
        The stencil, with `dropped` the ℓ¹ norm of the rest.
    """
    dims = len(filter_.grid)
    period = filter_.period[:dims]
    window = [min(2 * r + 1, n) for r, n in zip(radius, period, strict=True)]
    box = tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(period, window, strict=True))
    outside = np.abs(filter_.response)
    outside[box] = 0
    return Depthwise(filter_.response[box], dropped=outside.sum(tuple(range(dims))), boundary=filter_.boundary)


def _constant(operation):
    """I - hK_dwᵀK_dw as a stencil of 2m - 1 points per axis, wherever it is a filter; caches R of other filters."""
    match operation:
        case Filter(integrator="forward_euler", circulant=False):
            stencil = cut(operation, [m - 1 for m in operation.stencil.shape[:-1]])
            return dataclasses.replace(stencil, dropped=None)
        case Sum(branches) | Concatenate(branches):
            return dataclasses.replace(operation, branches=tuple(tuple(map(_constant, branch)) for branch in branches))
        case Filter():
            _ = operation.parts  # JAX computes no constants while it traces a `jax.shard_map`
    return operation
