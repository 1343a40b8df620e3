"""Eq. (11) without a transform: its Green's function cut to a stencil, and a certificate of what that costs.

(I + hKᵀK)⁻¹ y = g ∗ y couples every pixel with every other, but g decays. Within the box |x|_∞ ≤ r it is a stencil of
(2r + 1)^d points, and by Young's inequality ‖g ∗ y - g_r ∗ y‖ ≤ t_r ‖y‖ with t_r = Σ_{|x|_∞ > r} |g_x|, in any p-norm.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.deploy.folding import Folded, FoldedLayer
from lowcost.nn.operations import Depthwise, Filter


def truncate(folded: Folded, tolerance: float) -> Folded:
    """Each implicit step's filter (11) as the smallest stencil with t_r ≤ tolerance in every channel.

    Where the channels are coupled (K_circ) the filter stays: its stencil would couple them all.

    Args:
        folded: from `fold`.
        tolerance: t_r, the share of a layer's features that may be lost, > 0.

    Returns:
        The network with stencils that record what they omit, for `certified`.

    Raises:
        ValueError: tolerance is not above 0; weights are not finite.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")

    def replaced(layer: FoldedLayer) -> FoldedLayer:
        operations = [_stencil(x, tolerance) if isinstance(x, Filter) else x for x in layer.operations]
        return layer._replace(operations=tuple(operations))

    return dataclasses.replace(folded, layers=tuple(map(replaced, folded.layers)))


def _stencil(filter_: Filter, tolerance: float) -> Filter | Depthwise:
    if filter_.circulant:
        return filter_
    if not np.isfinite(filter_.response).all():
        raise ValueError("variables must be finite to be truncated, got a stencil with NaN or infinity")

    def box(radius: int) -> Depthwise:
        return filter_.cut([radius] * len(filter_.grid))

    # Ends with the whole grid at the latest, which drops nothing.
    return box(next(r for r in itertools.count() if np.asarray(box(r).dropped).max() <= tolerance))


class Certified(NamedTuple):
    """Logits, and how far each image's can lie from those of the network that was not truncated.

    Attributes:
        logits: [B, num_classes].
        error: ‖logits - exact logits‖₂ ≤ error, [B], in exact arithmetic; float32 adds about 1e-6 of the logits.
        layers: {layer: ‖f̃(y) - f(y)‖₂ ≤ this for the features y that entered it}, each [B].
    """

    logits: jax.Array
    error: jax.Array
    layers: dict[str, jax.Array]


def certified(truncated: Folded, images: jax.Array) -> Certified:
    """f̃(ỹ) - f(y) = (f̃ - f)(ỹ) + f(ỹ) - f(y), layer by layer: e ← L e + √(Σ_c t_c² ‖ỹ_c‖²), from e = 0.

    Beyond the paper. L is the Lipschitz bound of the layer as it was trained, t_c what its stencil drops of channel c,
    ỹ the features that meet the stencil. Everything comes from the truncated network's own run: the exact one is not
    needed.

    Args:
        truncated: from `truncate`.
        images: [B, *grid, C] in [0, 1].

    Returns:
        Logits and bounds.

    Raises:
        ValueError: images of another shape than the network was folded for.
    """
    y, error, layers = truncated.checked(images), jnp.zeros(len(images)), {}
    for layer in truncated.layers:
        new = jnp.zeros(len(images))
        for operation in layer.operations:
            if isinstance(operation, Depthwise) and operation.dropped is not None:
                squares = jnp.sum(y**2, axis=range(1, y.ndim - 1))
                new = jnp.linalg.norm(jnp.sqrt(squares) * operation.dropped[None], axis=-1)
            y = operation(y)
        layers[layer.name] = new
        error = layer.lipschitz * error + new
    return Certified(y, error, layers)
