"""Bounds the Lipschitz constants of a trained network's layers and, by their product, of the whole (Section 3.2.2).

At inference every operation but ReLU is affine. The norm of its linear part is exact, by its symbol or by small
singular value problems; ReLU never increases a distance.
"""

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lowcost.nn import operations as ops
from lowcost.nn.networks import Network
from lowcost.nn.structure import bound_layers, chain


class LayerBounds(NamedTuple):
    """What one layer does to the Euclidean norm of a perturbation, at inference.

    Attributes:
        name: of the module.
        lipschitz: ‖f(y) - f(z)‖ ≤ lipschitz · ‖y - z‖; of a single linear operation the norm itself, to rounding.
        stiffness: h·max|λ|² of a reaction-diffusion step, None for other layers; on the mirrored grid of 2n points if
            its boundary is "symmetric".
        amplification: smallest and largest factor R(h|λ|²) of its linear part.
        stable: whether |R| ≤ 1 for every frequency; for the explicit step, whether h·max|λ|² ≤ 2.
        keeps_input, adds_kept: as in `structure.Layer`.
    """

    name: str
    lipschitz: float
    stiffness: float | None = None
    amplification: tuple[float, float] | None = None
    stable: bool = True
    keeps_input: bool = False
    adds_kept: bool = False


class StabilityReport(NamedTuple):
    """The layers of a network in the order in which they are applied.

    Attributes:
        layers: their bounds.
    """

    layers: tuple[LayerBounds, ...]

    @property
    def lipschitz(self) -> float:
        """Π L_l of the layers' bounds: ‖net(y) - net(z)‖ ≤ lipschitz · ‖y - z‖ for any two images.

        Where a decoder adds earlier features, their bound is added to the product so far.
        """
        return chain(self.layers, 1.0, lambda layer, bound: layer.lipschitz * bound, operator.add)

    @property
    def unstable(self) -> tuple[str, ...]:
        """The names of the steps whose linear part amplifies: explicit ones with h·max|λ|² > 2."""
        return tuple(layer.name for layer in self.layers if not layer.stable)

    def __str__(self) -> str:
        """A table, one line per layer."""
        lines = [f"{'layer':<20} {'h max|λ|²':>10} {'R(h|λ|²)':>18} {'Lipschitz ≤':>12}"]
        for layer in self.layers:
            stiffness = "" if layer.stiffness is None else f"{layer.stiffness:.4g}"
            factors = "" if layer.amplification is None else "[{:.3f}, {:.3f}]".format(*layer.amplification)
            note = "  + earlier features" if layer.adds_kept else ""
            note += "" if layer.stable else "  unstable: h max|λ|² > 2"
            lines.append(f"{layer.name:<20} {stiffness:>10} {factors:>18} {layer.lipschitz:>12.4g}{note}")
        return "\n".join([*lines, f"{'network':<20} {'':>10} {'':>18} {self.lipschitz:>12.4g}"])


def stability_report(net: Network, variables: Mapping[str, Any], image_shape: Sequence[int]) -> StabilityReport:
    """‖f_l(y) - f_l(z)‖ ≤ L_l ‖y - z‖: returns the Lipschitz bounds L_l of all layers f_l, Section 3.2.2.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C]; the symbols depend on the grid.

    Returns:
        The bound of each layer at inference, in the Euclidean norm. `StabilityReport.lipschitz`, their product if there
        is no decoder, is a Lipschitz bound of the network; if it is masked, for signals of equal lengths.

    Raises:
        TypeError: net is no `Network`.
        ValueError: the network cannot take images of this shape, or a layer has no method `operations`
            (docs/own_steps.md).
    """
    layers = []
    for layer in bound_layers(net, variables, image_shape):
        operations = layer.operations()
        if net.masked:  # the average of a window with a single valid point has norm 1
            operations = tuple(x for x in operations if not isinstance(x, ops.AveragePool | ops.GlobalAveragePool))
        norm, keeps_input, adds_kept = lipschitz(operations, layer.grid), layer.keeps_input, layer.adds_kept
        bounds = LayerBounds(layer.name, norm, keeps_input=keeps_input, adds_kept=adds_kept)
        if filters := _filters(operations):
            factors = np.concatenate([x.symbol.ravel() for x in filters])
            stiffness = float(max(x.decay.max() for x in filters))
            amplification, stable = (float(factors.min()), float(factors.max())), bool(np.abs(factors).max() <= 1)
            bounds = bounds._replace(stiffness=stiffness, amplification=amplification, stable=stable)
        layers.append(bounds)
    return StabilityReport(tuple(layers))


def certified_radii(
    net: Network,
    variables: Mapping[str, Any],
    images: ArrayLike,
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
) -> np.ndarray:
    """r = min (z_y - z_j) / (L ‖w_y - w_j‖) over j ≠ y: no change of an image below r takes its class from y to j.

    z are the logits, w_j the weights of the classifier for class j, and L is the bound of all layers before it. Norms
    are Euclidean, over all points and channels of an image. The class is that of the largest logit. The radii are those
    of exact arithmetic: rounding to float32 is not included. Not in the paper; see Tsuzuku et al. 2018,
    arXiv:1802.04034.

    Args:
        net: with the head "class", not masked, and in float32 at least.
        variables: {"params", "batch_stats"}.
        images: [N, *grid, C], as the network takes them.
        labels: y, integers [N].
        logits: z [N, num_classes], if they are known already; all images at once may need much memory.

    Returns:
        The radii, float64 [N]; negative for images that the network does not assign to y.

    Raises:
        ValueError: another network, or labels or logits that do not fit the images; or as in `stability_report`.
    """
    if net.head != "class" or net.masked or jnp.finfo(net.dtype).bits < 32:
        got = f"head {net.head!r}, masked={net.masked}, dtype {jnp.dtype(net.dtype).name}"
        raise ValueError(f"net must have the head 'class', no mask and at least float32, got {got}; use another")
    z = np.asarray(net.apply(variables, jnp.asarray(images), train=False) if logits is None else logits, np.float64)
    y, shape = np.asarray(labels), (len(np.asarray(images)), net.num_classes)
    if z.shape != shape:
        raise ValueError(f"logits must have shape {list(shape)}, one row per image, got {list(z.shape)}; pass all")
    if y.shape != shape[:1] or not np.issubdtype(y.dtype, np.integer) or not ((y >= 0) & (y < shape[1])).all():
        got = f"{y.dtype} {list(y.shape)}" + (f" from {y.min()} to {y.max()}" if y.size else "")
        raise ValueError(f"labels must be {shape[0]} integers from 0 to {shape[1] - 1}, got {got}; pass one per image")
    *layers, _ = stability_report(net, variables, np.shape(images)[1:]).layers
    w = np.asarray(variables["params"]["classifier"]["kernel"], np.float64).T
    margins = np.take_along_axis(z, y[:, None], 1) - z
    distances = np.linalg.norm(w[:, None] - w, axis=-1)
    changes = StabilityReport(tuple(layers)).lipschitz * distances[y]  # of a margin
    radii = np.where(margins == 0, 0.0, np.copysign(np.inf, margins))  # if no change of the image changes the margin
    np.divide(margins, changes, out=radii, where=changes > 0)
    np.put_along_axis(radii, y[:, None], np.inf, 1)
    return radii.min(axis=1)


def lipschitz(operations: Sequence[ops.Operation], grid: Sequence[int]) -> float:
    """Π L_i with ‖f_i(y) - f_i(z)‖ ≤ L_i ‖y - z‖: a bound of operations applied one after another, Section 3.2.2.

    Each L_i is the norm if f_i is linear; a sum of branches is bounded by the norm of its linear part plus the bounds
    of the other branches.

    Args:
        operations: what a layer computes.
        grid: points per axis of its features.
    """
    return float(math.prod(_bound(operation, grid) for operation in operations))


def _bound(operation, grid):
    match operation:
        case ops.Relu():
            return 1
        case ops.AveragePool():
            return 2 ** (-sum(n % 2 == 0 for n in grid) / 2)  # the last window of an odd axis has one point
        case ops.GlobalAveragePool():
            return math.prod(grid) ** -0.5
        case ops.Upsample(larger):
            return 2 ** (sum(n > 1 for n in larger) / 2)
        case ops.Depthwise(stencil=θ, boundary="symmetric"):  # the image and its 2ᵈ - 1 mirror images are filtered
            return 2 ** (len(grid) / 2) * _norm(_of_stencil(θ, [2 * n for n in grid]), grid)
        case ops.Filter():
            return np.abs(operation.symbol).max()
        case ops.Sum(branches):
            symbols = [_symbol(branch, grid) for branch in branches]
            others = [lipschitz(branch, grid) for branch, λ in zip(branches, symbols, strict=True) if λ is None]
            return _norm(_total(symbols, grid), grid) + sum(others)
        case ops.Concatenate(branches):
            parts = [_symbol(branch, grid) for branch in branches]
            if all(λ is not None and λ.ndim == len(grid) + 1 for λ in parts):  # diagonal: the exact norm
                return np.sqrt(np.max(sum(np.abs(λ) ** 2 for λ in parts)))
            return math.hypot(*(lipschitz(branch, grid) for branch in branches))
    return _norm(_symbol((operation,), grid), grid)


def _symbol(operations, grid):
    """λ of a linear map that is one operation or none: [*grid, C], or a matrix per frequency [*grid, C_in, C_out].

    None for what is nonlinear, for several operations, and for what is diagonal in another basis, the filters along the
    channels and what is mirrored: these are bounded by their norms.
    """
    axes = range(len(grid))
    match operations:
        case ():
            return np.ones((1,) * (len(grid) + 1))
        case (ops.Depthwise(stencil=θ, boundary="periodic"),):
            return _of_stencil(θ, grid)
        case (ops.Convolution(stencil=θ),):
            return _of_stencil(θ, grid)
        case (ops.Pointwise(matrix=weights) | ops.Scale(scale=weights),):
            return np.expand_dims(np.float64(weights), tuple(axes))
        case (ops.Filter(circulant=False, boundary="periodic") as filter_,):
            return filter_.symbol
        case (ops.Sum(branches),):
            symbols = [_symbol(branch, grid) for branch in branches]
            return None if any(λ is None for λ in symbols) else _total(symbols, grid)
    return None


def _of_stencil(stencil, grid):
    """λ of `symbol` or `coupled_symbol` in float64, by NumPy: JAX would compile each operation for each shape."""
    window, axes = stencil.shape[: len(grid)], tuple(range(len(grid)))
    beyond = [(0, n - m) for n, m in zip(grid, window, strict=True)]
    padded = np.pad(np.float64(stencil), [*beyond, *[(0, 0)] * (stencil.ndim - len(grid))])
    return np.conj(np.fft.fftn(np.roll(padded, [-(m // 2) for m in window], axes), axes=axes))


def _total(symbols, grid):
    """Σ λ over what is linear; as matrices if one of them is a matrix."""
    zero = np.zeros((1,) * (len(grid) + 1))
    linear = [λ for λ in symbols if λ is not None]
    if matrices := [λ for λ in linear if λ.ndim > zero.ndim]:
        eye = np.expand_dims(np.eye(matrices[0].shape[-1]), tuple(range(len(grid))))
        linear = [λ if λ.ndim > zero.ndim else λ[..., None] * eye for λ in linear]
    return sum(linear) if linear else zero


def _norm(symbol, grid):
    """max |λ|, or max ‖λ‖₂ over matrices."""
    if symbol.ndim == len(grid) + 1:
        return np.abs(symbol).max()
    return np.linalg.norm(symbol, 2, (-2, -1)).max() if np.isfinite(symbol).all() else np.nan  # else the SVD would fail


def _filters(operations):
    """The filters among the operations and in their branches."""
    branches = [branch for operation in operations for branch in getattr(operation, "branches", ())]
    inside = itertools.chain.from_iterable(map(_filters, branches))
    return [*(operation for operation in operations if isinstance(operation, ops.Filter)), *inside]
