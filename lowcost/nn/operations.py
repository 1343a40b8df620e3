"""Describes what a layer computes at inference: a chain of operations with constant weights on features [B, *grid, C].

A layer's `operations(grid)` returns them. Its stability bound, its cost and its exported form all follow from this one
description. Weights of any floating type are stored in float32. The stencils are periodic, as in the paper, unless
stated otherwise; an axis of m points has its centre at index m // 2.

The platform is chosen when a program is lowered, so that one trace serves every device.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowcost.arguments import ResolventBoundary, promote
from lowcost.nn.filters import Filter
from lowcost.operators.boundary import EXTENSIONS, reach
from lowcost.operators.sliding import MAX_PATCH_POINTS, UNROLLED, convolve_by_xla, depthwise_sums, shifted

FULL = jax.lax.Precision.HIGHEST  # accelerators would round products to fewer bits


class _Weighted:
    """Stores the weights, the first field, and the bias, as [C_out], as float32 arrays of NumPy."""

    def __post_init__(self: Any):
        name = fields(self)[0].name
        weights = np.asarray(getattr(self, name), np.float32)
        object.__setattr__(self, name, weights)
        object.__setattr__(self, "bias", np.broadcast_to(np.float32(self.bias), weights.shape[-1:]))


@dataclass(frozen=True, eq=False)
class Convolution(_Weighted):
    """K y + b: Eq. (4).

    Attributes:
        stencil: [*window, C_in, C_out].
        bias: b, [C_out], or a scalar.
    """

    stencil: NDArray[Any]
    bias: ArrayLike = 0.0

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, C_out]."""
        window = self.stencil.shape[:-2]

        def product(padded: jax.Array) -> jax.Array:
            patches = jnp.concatenate(shifted(padded, window), axis=-1)
            return jnp.matmul(patches, self.stencil.reshape(-1, self.stencil.shape[-1]), precision=FULL)

        return _convolve(self.stencil, y, product, most=MAX_PATCH_POINTS) + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Depthwise(_Weighted):
    """K_dw y + b: Eq. (5).

    Attributes:
        stencil: [*window, C].
        bias: b, [C], or a scalar.
        dropped: [C], ℓ¹ norm of what this stencil omits of the map that it approximates; None for an exact stencil.
        boundary: what lies outside the grid.
    """

    stencil: NDArray[Any]
    bias: ArrayLike = 0.0
    dropped: NDArray[np.float64] | None = None
    boundary: ResolventBoundary = "periodic"

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        kernel, sums = self.stencil[..., None, :], partial(depthwise_sums, self.stencil)
        options = {"most": UNROLLED, "groups": self.stencil.shape[-1], "boundary": self.boundary}
        return _convolve(kernel, y, sums, **options) + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Pointwise(_Weighted):
    """M y + b, Eq. (6); on features without a grid, [B, C_in], the classifier.

    Attributes:
        matrix: [C_in, C_out].
        bias: b, [C_out], or a scalar.
    """

    matrix: NDArray[Any]
    bias: ArrayLike = 0.0

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, C_out]."""
        return jnp.matmul(y, self.matrix, precision=FULL) + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Scale(_Weighted):
    """a ⊙ y + b, a normalisation N that follows no operator, as in Section 4's connecting layer.

    Attributes:
        scale: a, [C].
        bias: b, [C], or a scalar.
    """

    scale: NDArray[Any]
    bias: ArrayLike = 0.0

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        return _rows(self.scale, y) * y + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Relu:
    """max(y, 0) = σ(y), Eq. (3)."""

    def __call__(self, y: jax.Array) -> jax.Array:
        """Any shape."""
        return jnp.maximum(y, 0)


@dataclass(frozen=True, eq=False)
class Quantize:
    """Δ (q - z) with q = clip(round(y / Δ) + z, 0, 255): rounds to an 8-bit integer; not in the paper.

    Attributes:
        scale: Δ.
        zero: z, the integer for y = 0.
    """

    scale: float
    zero: int

    def __call__(self, y: jax.Array) -> jax.Array:
        """Any shape."""
        integers = jnp.clip(jnp.round(y / self.scale) + self.zero, 0, 255)
        return self.scale * (integers - self.zero)


@dataclass(frozen=True, eq=False)
class AveragePool:
    """(y₀₀ + y₀₁ + y₁₀ + y₁₁) / 4 of every 2x2 pixels, likewise for other grids: the pooling between blocks, Section 4.

    If an axis has an odd number of points, its last window has one point instead of two, and averages that one.
    """

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *⌈grid / 2⌉, C]."""
        if any(n % 2 for n in y.shape[1:-1]):  # a repeated last point does not change the average of its window
            y = jnp.pad(y, [(0, 0), *((0, n % 2) for n in y.shape[1:-1]), (0, 0)], mode="edge")
        # XLA's CPU backend fuses sums of strided slices with the neighbouring operations, but not a window reduction.
        corners = itertools.product(*[(slice(0, None, 2), slice(1, None, 2))] * (y.ndim - 2))
        total = reduce(jnp.add, [promote(y[:, *corner]) for corner in corners])
        return (total / 2 ** (y.ndim - 2)).astype(y.dtype)


@dataclass(frozen=True, eq=False)
class GlobalAveragePool:
    """Σ_x y_x / n: the average over the grid, the last pooling of Section 4."""

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, C], float32 at least."""
        return jnp.mean(promote(y), axis=range(1, y.ndim - 1))


@dataclass(frozen=True, eq=False)
class Upsample:
    """z_x = y_⌊x/2⌋ along each axis: repeats every pixel, 2ᵈ times the adjoint of `AveragePool`; not in the paper.

    Attributes:
        grid: points per axis of the result; those of y are half as many, rounded up.
    """

    grid: tuple[int, ...]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *⌈grid / 2⌉, C] → [B, *grid, C]."""
        for axis in range(1, y.ndim - 1):
            y = jnp.repeat(y, 2, axis)
        return y[:, *map(slice, self.grid)]


@dataclass(frozen=True, eq=False)
class Sum:
    """Σ f(y) over its branches f; a branch without operations is y itself, as in Eq. (1).

    Attributes:
        branches: each a sequence of operations, applied one after another.
    """

    branches: tuple[tuple["Operation", ...], ...]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the shape of each branch's result."""
        return reduce(jnp.add, [run(branch, y) for branch in self.branches])


@dataclass(frozen=True, eq=False)
class Concatenate:
    """y ↦ [A(y); B(y)]: the channels of all branches side by side, as in [x; K x] of Section 4's connecting layer.

    Attributes:
        branches: each a sequence of operations, applied one after another.
    """

    branches: tuple[tuple["Operation", ...], ...]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *grid, Σ of the branches' channels]."""
        return jnp.concatenate([run(branch, y) for branch in self.branches], axis=-1)


Operation = (
    Convolution
    | Depthwise
    | Pointwise
    | Scale
    | Filter
    | Relu
    | Quantize
    | AveragePool
    | GlobalAveragePool
    | Upsample
    | Sum
    | Concatenate
)


def run(operations: Sequence[Operation], y: jax.Array) -> jax.Array:
    """(f_n ∘ … ∘ f₁)(y): applies the operations one after another to features y [B, *grid, C], Section 4."""
    for operation in operations:
        y = operation(y)
    return y


def _convolve(stencil, y, cpu, *, most, groups=1, boundary="periodic"):
    """K y: on a CPU by `cpu` if the window has at most `most` points, else by XLA's convolution.

    Both take the features of the extended grid.
    """
    window, convolve = stencil.shape[:-2], partial(convolve_by_xla, stencil, groups=groups, precision=FULL)

    def on(platform, extension):
        apply = cpu if platform == "cpu" and math.prod(window) <= most else convolve
        return lambda y: apply(extension(y, reach(window), boundary))

    return jax.lax.platform_dependent(y, **{name: on(name, extension) for name, extension in EXTENSIONS.items()})


def _rows(x, y):
    """x [C], with leading axes of one so that it broadcasts over y."""
    return x.reshape(*(1,) * (y.ndim - 1), -1)
