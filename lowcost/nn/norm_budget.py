"""Keeps the Lipschitz bound of a network with fixed scales below a budget while it trains.

The product of the layers' bounds, with the factors of the poolings, is the budget. All steps and connecting layers have
the same bound s > 1. The opening and the classifier set the scale of the logits, and their bounds are larger: half of
the budget's logarithm is theirs. Each layer states by `weight_limits(bound)` the operator norms of its weights that
suffice. After each optimiser step the weights are projected onto these limits. The limits are balls of norms, so that
moving averages of the weights keep them too.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowcost.nn import operations as ops
from lowcost.nn.networks import Network
from lowcost.nn.normalization import Limits
from lowcost.nn.stability import lipschitz
from lowcost.nn.structure import Layer, bound_layers, chain
from lowcost.spectral import circulant_symbol, coupled_symbol, symbol

_WITHOUT_WEIGHTS = (ops.AveragePool, ops.GlobalAveragePool, ops.Upsample, ops.Scale)


class _Share(NamedTuple):
    """What a layer contributes to the budget: factor · s^exponent; the exponent is 0 without weights."""

    factor: float
    exponent: float
    keeps_input: bool
    adds_kept: bool


def keep_norms(net: Network, image_shape: Sequence[int], budget: float) -> optax.GradientTransformation:
    """‖net(y) - net(z)‖ ≤ budget · ‖y - z‖ after each step: returns the projection, the last part of an optimiser.

    A weight whose operator norm exceeds its limit is multiplied by a factor; of a depth-wise stencil each channel by
    its own. Norms of stencils are those on the grid, by their symbols; see `spectral_norms` for matrices.

    Args:
        net: with `fixed_scale`, and layers that have a method `weight_limits`.
        image_shape: [*grid, C].
        budget: the bound, in the Euclidean norm, as `stability_report` then finds it or lower.

    Returns:
        An optimiser to chain after others, such as `optax.chain(optax.adam(0.01), keep_norms(net, (8, 8, 1), 100))`.
        Weights that exceed their limits at the start keep them after the first step.

    Raises:
        ValueError: a network without fixed scales or with other layers, or a budget that is too small for it.
    """
    layers = {layer.name: layer for layer in _layers(net, image_shape)}
    limits = weight_limits(net, image_shape, budget)

    def project(params: Any) -> Any:
        kept = {name: projected(params[name], limits[name], layers[name].grid) for name in limits}
        return {**params, **kept}

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("params must be the weights that are updated, got None; pass them to update")
        new = project(optax.apply_updates(params, updates))
        return jax.tree.map(operator.sub, new, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def weight_limits(net: Network, image_shape: Sequence[int], budget: float) -> dict[str, Limits]:
    """Returns layer → the limits of its weights' operator norms with which the network's bound is the budget.

    Args:
        net, image_shape, budget: as in `keep_norms`.

    Raises:
        ValueError: as in `keep_norms`.
    """
    if not net.fixed_scale:
        raise ValueError("net must have fixed_scale=True, got False; a normalisation undoes the limits of its weights")
    layers = _layers(net, image_shape)
    shares = _shares(layers, masked=net.masked)

    def bound(s: float) -> float:
        return chain(shares, 1.0, lambda share, bound: bound * share.factor * s**share.exponent, operator.add)

    if not bound(1.0) < budget < math.inf:
        expected = f"budget must be finite and above {bound(1.0):.3g}, the bound of this network without reactions"
        raise ValueError(f"{expected}, got {budget}; use a larger one")
    low, high = 1.0, 2.0
    while bound(high) < budget:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if bound(middle) <= budget else (low, middle)
    pairs = zip(layers, shares, strict=True)
    return {layer.name: layer.module.weight_limits(low**share.exponent) for layer, share in pairs if share.exponent}


def projected(weights: Mapping[str, Any], limits: Mapping[str, Any], grid: Sequence[int]) -> dict[str, Any]:
    """Returns the weights of a layer with operator norms within their limits, which does not change smaller ones."""
    return {name: x if name not in limits else _projected(name, x, limits[name], grid) for name, x in weights.items()}


def _projected(name, x, limit, grid):
    if isinstance(limit, Mapping):
        return projected(x, limit, grid)
    return x * jnp.minimum(1, limit / jnp.maximum(_norms(name, x, grid), jnp.finfo(x.dtype).tiny))


def _norms(name, x, grid):
    """The operator norm of a weight, or a slightly larger number; of a depth-wise stencil [1, …, 1, C], per channel."""
    if name.startswith(("matrix", "kernel")):
        return spectral_norms(x)
    if name == "shared_stencil":
        return jnp.abs(circulant_symbol(x / math.sqrt(x.shape[-1]), grid)).max()
    if x.ndim == len(grid) + 1:
        return jnp.abs(symbol(x, grid)).max(range(len(grid)), keepdims=True)
    return spectral_norms(coupled_symbol(x, grid)).max()


def spectral_norms(matrices: jax.Array) -> jax.Array:
    """‖A‖₂ ≤ ‖(AᴴA)^(2ᵏ)‖_F^(1/2ᵏ⁺¹), k = 8: returns these bounds of matrices [..., m, n], shape [...].

    A bound exceeds the norm by at most a factor of min(m, n)^(1/1024), which is 1.005 for 128. It needs only products
    of matrices, which all devices compute fast (Gram iteration, Delattre et al. 2023, arXiv:2305.16173).
    """
    tiny = jnp.finfo(matrices.dtype).tiny
    scale = jnp.maximum(jnp.abs(matrices).max((-2, -1), keepdims=True), tiny)  # so that no square overflows
    a = matrices / scale if matrices.shape[-2] >= matrices.shape[-1] else (matrices / scale).swapaxes(-1, -2)
    gram, log = a.conj().swapaxes(-1, -2) @ a, jnp.log(scale[..., 0, 0])
    for i in range(9):
        size = jnp.maximum(jnp.sqrt((jnp.abs(gram) ** 2).sum((-2, -1), keepdims=True)), tiny)
        log += jnp.log(size[..., 0, 0]) / 2 ** (i + 1)
        gram = gram / size
        gram = gram @ gram
    return jnp.exp(log)


def _shares(layers, *, masked):
    """Half of the budget's logarithm is for the first and the last layer with weights, half for those between them."""
    weighted = [layer for layer in layers if layer.module.variables.get("params")]
    for layer in weighted:
        if not hasattr(layer.module, "weight_limits"):
            got = f"{type(layer.module).__name__} without one"
            raise ValueError(f"{layer.name} must have a method weight_limits(bound), got {got}; see docs/own_steps.md")
    exponents = {layer.name: 1.0 for layer in weighted}
    exponents |= {layer.name: (len(weighted) - 2) / 2 for layer in (weighted[0], weighted[-1])}
    averages = ops.AveragePool | ops.GlobalAveragePool

    def share(layer: Layer) -> _Share:
        fixed = [operation for operation in layer.operations() if isinstance(operation, _WITHOUT_WEIGHTS)]
        if masked:  # as in `stability_report`
            fixed = [operation for operation in fixed if not isinstance(operation, averages)]
        factor = lipschitz(fixed, layer.grid)
        return _Share(factor, exponents.get(layer.name, 0.0), layer.keeps_input, layer.adds_kept)

    return [share(layer) for layer in layers]


def _layers(net: Network, image_shape: Sequence[int]) -> list[Layer]:
    """Returns the layers with weights and statistics of 0."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), image)
    return bound_layers(net, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes)), image_shape)
