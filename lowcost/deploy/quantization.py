"""Quantizes a folded network: its products and convolutions take and return 8-bit integers."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lowcost.deploy.folding import Folded, FoldedLayer
from lowcost.nn.operations import Concatenate, Convolution, Depthwise, Operation, Pointwise, Quantize, Relu, Sum, run
from lowcost.nn.structure import chain

LEVELS = 256
"""Values of an 8-bit integer."""


def quantize(folded: Folded, images: ArrayLike) -> Folded:
    """q = clip(round(y / Δ) + z): rounds what enters and leaves each product and convolution to 8-bit integers.

    Each rounding has its own Δ and z, with which the range of its features on the images is just representable. Δ and z
    are one number each, for all channels. The implicit filters, the sums of the steps and the averages keep their
    precision. `to_onnx(..., bits=8)` writes the weights as integers too, each rounding as the pair QuantizeLinear and
    DequantizeLinear. Not in the paper.

    Args:
        folded: from `fold`.
        images: [N, *grid, C] as the network takes them; training images, some hundred of them.

    Returns:
        The network with its roundings.

    Raises:
        TypeError: images are integers.
        ValueError: images of another shape than the network was folded for, none of them, or features that are not
            finite.
    """
    y = folded.checked(jnp.asarray(images))
    if not len(y):
        raise ValueError("images must be at least one, got none; take some hundred training images")
    layers = []

    def apply(layer: FoldedLayer, y: jax.Array) -> jax.Array:
        layers.append(layer._replace(operations=_rounded(layer.operations, y)))
        return run(layer.operations, y)

    chain(folded.layers, y, apply, jnp.add)
    return dataclasses.replace(folded, layers=tuple(layers))


def _rounded(operations: Sequence[Operation], y: jax.Array) -> tuple[Operation, ...]:
    """Returns the operations on features such as y, with a rounding before and after each product and convolution.

    A rounding of non-negative features has z = 0 and so clips negative numbers to 0. It takes the place of a ReLU.
    """
    result: list[Operation] = []
    product = False
    for operation, following in itertools.zip_longest(operations, operations[1:]):
        if isinstance(operation, Sum | Concatenate):
            branches = tuple(_rounded(branch, y) for branch in operation.branches)
            operation = dataclasses.replace(operation, branches=branches)
        is_product = isinstance(operation, Convolution | Depthwise | Pointwise)
        if is_product and not (result and isinstance(result[-1], Quantize)):
            result.append(_rounding(y))
        y, product = operation(y), is_product or (product and isinstance(operation, Relu))
        if not (product and isinstance(operation, Relu)):
            result.append(operation)
        if product and not isinstance(following, Relu):
            result.append(_rounding(y))
    return tuple(result)


def _rounding(y: jax.Array) -> Quantize:
    low, high = float(jnp.minimum(0, y.min())), float(jnp.maximum(0, y.max()))  # so that zero is one of the values
    if not np.isfinite([low, high]).all():
        raise ValueError("variables and images must be finite, got features with NaN or infinity; train again")
    scale = np.float32((high - low) / (LEVELS - 1) or 1.0)
    return Quantize(float(scale), int(np.round(-low / scale)))
