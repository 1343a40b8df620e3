"""Counts weights and multiply-adds of a whole network on one image, from the description of its layers: Table 2."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from numpy.typing import NDArray

from lowcost import cost
from lowcost.arguments import check_choice
from lowcost.cost import Cost, Method
from lowcost.methods import SPECTRAL
from lowcost.nn import operations as ops
from lowcost.nn.networks import Network
from lowcost.nn.structure import blank_layers


def network_cost(net: Network, image_shape: Sequence[int], *, method: Method | None = None) -> Cost:
    """Σ over the layers of Section 4's network on one image: opening, steps, connecting layers, classifier.

    Args:
        net: the network, e.g. `network("implicit_rd", "A", 10)`, or one with steps of your own.
        image_shape: [*grid, C_in].
        method: of the steps' convolutions and filters. If None, "fft" for the implicit and the circulant steps and
            "direct" for the others, as in Table 1. The opening and the connecting layers are direct.

    Returns:
        Weights and multiply-adds.

    Raises:
        TypeError: net is no `Network`.
        ValueError: unknown method, the network cannot take images of this shape, or a layer has no method `operations`.

    Example:
        >>> from lowcost.nn import network
        >>> network_cost(network("implicit_rd", "A", 10), (32, 32, 3)).weights
        101066
    """
    weights = multiply_adds = 0
    for layer in blank_layers(net, image_shape):
        weights += sum(x.size for x in jax.tree.leaves(layer.module.variables.get("params", {})))
        options = {"method": method} if method and "_step" in layer.name else {}
        multiply_adds += _multiply_adds(layer.operations(), layer.grid, options)
    return Cost(weights, multiply_adds)


def _multiply_adds(operations: Sequence[ops.Operation], grid: Sequence[int], options: dict[str, Any]) -> int:
    total = 0
    for operation in operations:
        match operation:
            case ops.Convolution(stencil=θ):
                total += cost.fully_coupled(grid, _window(θ, grid), *θ.shape[-2:], **options).multiply_adds
            case ops.Depthwise(stencil=θ):
                total += cost.depthwise(grid, _window(θ, grid), θ.shape[-1], **options).multiply_adds
            case ops.Pointwise(matrix=matrix):
                total += cost.pointwise(grid, *matrix.shape).multiply_adds
            case ops.Filter(stencil=θ, integrator=integrator, circulant=circulant, axes=axes, mirrored=mirrored):
                of_filter = options
                if integrator == "imex_euler":  # an inverse has no direct method
                    of_filter = {"method": "fft"} | options
                    check_choice("method", of_filter["method"], SPECTRAL)
                count = cost.circulant_diffusion if circulant else cost.depthwise_diffusion
                total += count(grid, θ.shape[:-1], θ.shape[-1], **of_filter).multiply_adds
                if mirrored and of_filter.get("method") == "matmul":  # its symbol has one real part in place of 2ᵈ⁻¹
                    parts, images = 2 ** (len(axes) - 1), 1 if circulant else θ.shape[-1]
                    total -= (parts - 1) * math.prod(axes) * images
            case ops.Sum(branches) | ops.Concatenate(branches):
                total += sum(_multiply_adds(branch, grid, options) for branch in branches)
    return total


def _window(stencil: NDArray[Any], grid: Sequence[int]) -> tuple[int, ...]:
    """Returns the points of the window that have weights: the stencil of an adjoint extends an even axis by zeros."""
    if not stencil.any():  # as with h = 0
        return stencil.shape[: len(grid)]
    axes = range(stencil.ndim)
    others = [tuple(i for i in axes if i != axis) for axis in range(len(grid))]
    return tuple(int((stencil != 0).any(i).sum()) for i in others)
