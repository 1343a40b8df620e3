"""From a trained network of Section 4 to constants: N folded into the weights before it, h into the reaction."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowcost.deploy.operations import (
    AveragePool,
    Concatenate,
    Convolution,
    Depthwise,
    Filter,
    GlobalAveragePool,
    Operation,
    Pointwise,
    Relu,
    Sum,
    run,
)
from lowcost.nn import networks, steps
from lowcost.nn.networks import Connecting, Network, Opening, bound_layers
from lowcost.nn.stability import stability_report


class FoldedLayer(NamedTuple):
    """A layer of the network, as operations.

    Attributes:
        name: of the Flax module that it was.
        operations: to apply one after another.
        lipschitz: ‖f(y) - f(z)‖ ≤ lipschitz · ‖y - z‖ of the layer as it was trained.
    """

    name: str
    operations: tuple[Operation, ...]
    lipschitz: float


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """A network of Section 4 at inference: `folded(images)` → logits; jit it as any function.

    Attributes:
        layers: in the order in which they are applied.
        image_shape: [*grid, C] of the images, for which alone it is right.
    """

    layers: tuple[FoldedLayer, ...]
    image_shape: tuple[int, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, *grid, C] in [0, 1] → logits [B, num_classes], float32.

        Raises:
            ValueError: images of another shape.
        """
        y = self.checked(images)
        for layer in self.layers:
            y = run(layer.operations, y)
        return y

    def checked(self, images: jax.Array) -> jax.Array:
        """The images in float32, if they are of the size that the network was folded for."""
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must be [B, {', '.join(map(str, self.image_shape))}], the size that the network was folded "
                f"for, got shape {list(images.shape)}"
            )
        return images.astype(jnp.float32)


def fold(net: Network, variables: Any, image_shape: Sequence[int]) -> Folded:
    """N(K y) = (a·K) y + b: Section 4's network with running statistics as constants, its logits to 1e-5.

    N(K y) becomes K'y + b; h σ(r) becomes σ(h r); the explicit step's
    y - hKᵀK y a single stencil of 2m - 1 points per axis; the implicit step keeps R = 1 / (1 + h|λ|²), for this grid.
    Computed in float64, kept in float32; a network that computes in bfloat16 is folded to float32 too.

    Args:
        net: the network, of a single seed.
        variables: {"params", "batch_stats"}.
        image_shape: [*grid, C] of the images.

    Returns:
        The folded network.

    Raises:
        ValueError: the network cannot take images of this shape, or has a layer that cannot be folded.
    """
    bounds = {layer.name: layer.lipschitz for layer in stability_report(net, variables, image_shape).layers}
    layers = []
    for name, module, grid in bound_layers(net, variables, image_shape):
        if type(module) not in _FOLD:
            raise ValueError(f"fold knows nothing of {type(module).__name__} ({name})")
        layers.append(FoldedLayer(name, _FOLD[type(module)](module, grid), bounds[name]))
    return Folded(tuple(layers), tuple(image_shape))


# --- layers -----------------------------------------------------------------------------------------------------------


def _opening(layer, grid):
    return _coupled(_weights(layer, "stencil"), *_affine(layer)), Relu()


def _connecting(layer, grid):
    """[a₁x + b₁; K_dw(a₂θ)x + b₂]."""
    stencil = _weights(layer, "stencil")
    (a1, a2), (b1, b2) = (np.split(x, 2) for x in _affine(layer))
    as_it_is = _depthwise(np.ones((*(1,) * len(grid), len(a1))), a1, b1)
    return (Concatenate(((as_it_is,), (_depthwise(stencil, a2, b2),))),)


def _implicit(circulant, step, grid):
    """F⁻¹(R ⊙ F(y + σ(h(M'y + b))))."""
    return Sum(((), _reaction(step, step.h))), Filter(_theta(step, circulant), step.h, "imex_euler", grid, circulant)


def _explicit(step, grid):
    """(I - hKᵀK) y + σ(h(M'y + b)), I - hKᵀK as one stencil."""
    diffusion = Filter(_theta(step, False), step.h, "forward_euler", grid)
    stencil = cut(diffusion, [m - 1 for m in diffusion.stencil.shape[:-1]])
    return (Sum(((dataclasses.replace(stencil, dropped=None),), _reaction(step, step.h))),)


def _circulant(step, grid):
    """The same as a filter, since the stencil would couple all channels."""
    diffusion = Filter(_theta(step, True), step.h, "forward_euler", grid, circulant=True)
    return (Sum(((diffusion,), _reaction(step, step.h))),)


def _mobilenet(step, grid):
    return _depthwise(_weights(step, "stencil"), *_affine(step)), Relu(), *_reaction(step, 1.0)


def _resnet(step, grid):
    first = _coupled(_weights(step, "stencil1"), *_affine(step))
    second = _adjoint(step.h * _weights(step, "stencil2"))
    return (Sum(((), (first, Relu(), _coupled(second)))),)


def _linear_mix(step, grid):
    a, b = _affine(step)
    stencil1, stencil2, matrix1, matrix2 = (
        _weights(step, f"{kind}{i}") for kind in ("stencil", "matrix") for i in (1, 2)
    )
    first = Sum(((_depthwise(stencil1, a, b),), (_pointwise(matrix1, a),)))
    second = Sum(((_depthwise(step.h * _mirror(stencil2)),), (_pointwise(step.h * matrix2.T),)))
    return (Sum(((), (first, Relu(), second))),)


def _classifier(layer, grid):
    return (_pointwise(_weights(layer, "kernel"), 1.0, _weights(layer, "bias")),)


_FOLD: dict[type, Callable[..., tuple[Operation, ...]]] = {
    Opening: _opening,
    Connecting: _connecting,
    networks.AveragePool: lambda layer, grid: (AveragePool(),),
    networks.GlobalAveragePool: lambda layer, grid: (GlobalAveragePool(),),
    nn.Dense: _classifier,
    steps.ResNetStep: _resnet,
    steps.MobileNetStep: _mobilenet,
    steps.LinearMixStep: _linear_mix,
    steps.ExplicitRDStep: _explicit,
    steps.ImplicitRDStep: partial(_implicit, False),
    steps.CirculantRDStep: _circulant,
    steps.ImplicitCirculantRDStep: partial(_implicit, True),
}


# --- their parts ------------------------------------------------------------------------------------------------------


def cut(diffusion: Filter, radius: Sequence[int]) -> Depthwise:
    """The part of a filter's impulse response within |x_i| ≤ radius_i, as a stencil that tells what it leaves out."""
    grid = diffusion.grid
    window = [min(2 * r + 1, n) for r, n in zip(radius, grid, strict=True)]
    box = tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(grid, window, strict=True))
    stencil = diffusion.response[box]
    outside = np.abs(diffusion.response)
    outside[box] = 0
    return dataclasses.replace(_depthwise(stencil), dropped=outside.sum(tuple(range(len(grid)))))


def _reaction(step, h):
    """σ(h N(M y)), as h ≥ 0."""
    matrix, statistics = (step.variables[kind]["reaction"] for kind in ("params", "batch_stats"))
    a, b = _scale_and_shift(statistics["normalize"])
    return _pointwise(np.float64(matrix["matrix"]), h * a, h * b), Relu()


def _affine(layer):
    return _scale_and_shift(layer.variables["batch_stats"]["normalize"])


def _scale_and_shift(statistics):
    """N y = a y + b."""
    mean, var = np.float64(statistics["mean"]), np.float64(statistics["var"])
    a = 1 / np.sqrt(var + steps.EPSILON)
    return a, -mean * a


def _weights(layer, name) -> NDArray[np.float64]:
    return np.asarray(layer.variables["params"][name], np.float64)


def _theta(step, circulant) -> NDArray[np.float32]:
    if not circulant:
        return np.asarray(step.variables["params"]["stencil"], np.float32)
    return np.asarray(steps.unshared(step.variables["params"]["shared_stencil"]), np.float32)


def _adjoint(stencil):
    """The stencil of K(θ)ᵀ, [*window, C_out, C_in]."""
    return _mirror(stencil, channel_axes=2).swapaxes(-1, -2)


def _mirror(stencil, channel_axes=1):
    """θ₋ⱼ; an even axis gets a zero to be mirrored about its centre, index m // 2."""
    dims = stencil.ndim - channel_axes
    odd = np.pad(stencil, [*((0, 1 - m % 2) for m in stencil.shape[:dims]), *[(0, 0)] * channel_axes])
    return np.flip(odd, tuple(range(dims)))


def _scaled(kind, weights, a=1.0, b=None):
    """The operation a K y + b."""
    bias = np.zeros(weights.shape[-1]) if b is None else b
    return kind(np.asarray(weights * a, np.float32), np.asarray(bias, np.float32))


_coupled, _depthwise, _pointwise = (partial(_scaled, kind) for kind in (Convolution, Depthwise, Pointwise))
