"""Truncates the Green's function of Eq. (11) to a stencil, and certifies a bound of the error.

(I + hKᵀK)⁻¹ y = g ∗ y couples every pixel with every other, but g decays. Its values in the box |x|_∞ ≤ r are a stencil
g_r of (2r + 1)^d points. By Young's inequality ‖g ∗ y - g_r ∗ y‖ ≤ t_r ‖y‖ in any p-norm, with
t_r = Σ_{|x|_∞ > r} |g_x|. With boundary="symmetric" this holds on the mirrored grid of 2n points per axis, where g is
even along each axis. The results there are mirror images too, so that the bound holds on the image.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.deploy.folding import Folded, FoldedLayer, cut
from lowcost.nn.operations import Depthwise, Filter, Operation, Quantize
from lowcost.nn.structure import chain


def truncate(folded: Folded, tolerance: float) -> Folded:
    """t_r ≤ tolerance: replaces each implicit step's filter (11) by the smallest stencil, for every channel.

    The filter of K_circ stays as it is, because its stencil would couple all channels. So does a filter that is not the
    last operation of its layer, because `certified` knows no bound of the operations that follow it.

    Args:
        folded: from `fold`.
        tolerance: largest t_r, > 0: the share of a layer's features that may be lost.

    Returns:
        The network with stencils that record what they omit, for `certified`.

    Raises:
        ValueError: tolerance is not above 0; weights are not finite.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")

    def replaced(layer: FoldedLayer) -> FoldedLayer:
        *others, last = layer.operations or [None]
        return layer._replace(operations=(*others, _stencil(last, tolerance))) if isinstance(last, Filter) else layer

    return dataclasses.replace(folded, layers=tuple(map(replaced, folded.layers)))


def _stencil(filter_: Filter, tolerance: float) -> Filter | Depthwise:
    if filter_.circulant:
        return filter_
    if not np.isfinite(filter_.response).all():
        raise ValueError("variables must be finite, got a stencil with NaN or infinity; train again")

    def box(radius: int) -> Depthwise:
        return cut(filter_, [radius] * len(filter_.grid))

    # The search ends: the whole grid omits nothing.
    return box(next(r for r in itertools.count() if np.asarray(box(r).dropped).max() <= tolerance))


class Certified(NamedTuple):
    """Logits, and a bound of their distance from the logits of the network that is not truncated, for each image.

    Attributes:
        logits: [B, num_classes], or [B, *grid, num_classes] of a network with the head "pixels".
        error: ‖logits - exact logits‖₂ ≤ error over all logits of an image, [B], in exact arithmetic; float32 adds
            about 1e-6 of the logits.
        layers: {layer: bound of ‖f̃(y) - f(y)‖₂ for the features y that enter it}, each [B].
    """

    logits: jax.Array
    error: jax.Array
    layers: dict[str, jax.Array]


def certified(truncated: Folded, images: jax.Array) -> Certified:
    """f̃(ỹ) - f(y) = (f̃ - f)(ỹ) + f(ỹ) - f(y), layer by layer: e ← L e + √(Σ_c t_c² ‖ỹ_c‖²), from e = 0.

    Returns the logits of the truncated network and the bound e of their error. Where a decoder adds earlier features,
    their e is added too. Not in the paper.

    L is the Lipschitz bound of the layer as trained, t_c the ℓ¹ norm that its stencil omits in channel c, and ỹ the
    features to which the stencil is applied. Only the truncated network is run.

    Args:
        truncated: from `truncate`.
        images: [B, *grid, C], as the network takes them.

    Returns:
        Logits and bounds.

    Raises:
        TypeError: images are integers.
        ValueError: images of another shape than the network was folded for, or a network that `quantize` has rounded.
    """
    if any(_rounds(layer.operations) for layer in truncated.layers):
        problem = "truncated must be a network without 8-bit activations, got one, whose rounding has no bound"
        raise ValueError(f"{problem}; certify it before quantize")
    layers = {}

    def apply(layer: FoldedLayer, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, error = state
        layers[layer.name] = jnp.zeros(len(images))
        for operation in layer.operations:
            if isinstance(operation, Depthwise) and operation.dropped is not None:
                squares = jnp.sum(y**2, axis=range(1, y.ndim - 1))
                layers[layer.name] = jnp.linalg.norm(jnp.sqrt(squares) * operation.dropped[None], axis=-1)
            y = operation(y)
        return y, layer.lipschitz * error + layers[layer.name]

    start = truncated.checked(images), jnp.zeros(len(images))
    return Certified(*chain(truncated.layers, start, apply, partial(jax.tree.map, jnp.add)), layers)


def _rounds(operations: Sequence[Operation]) -> bool:
    """Returns whether there is a rounding among the operations or in their branches."""
    return any(isinstance(x, Quantize) or any(map(_rounds, getattr(x, "branches", ()))) for x in operations)
