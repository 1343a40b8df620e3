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
from functools import cached_property, partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowcost.arguments import ResolventBoundary, promote
from lowcost.batching import per_shard
from lowcost.operators.boundary import EXTENSIONS, reach
from lowcost.operators.sliding import MAX_PATCH_POINTS, UNROLLED, convolve_by_xla, shifted
from lowcost.real_dft import both_signs, cosine_basis, real_basis, real_parts, real_transform, slots

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
        *window, c = self.stencil.shape

        def shift_and_add(padded: jax.Array) -> jax.Array:
            # Without the barriers XLA's CPU backend computes each term again wherever the sum is used.
            weights, padded = [_rows(x, y) for x in self.stencil.reshape(-1, c)], jax.lax.optimization_barrier(padded)
            return jax.lax.optimization_barrier(reduce(jnp.add, map(jnp.multiply, weights, shifted(padded, window))))

        kernel = self.stencil[..., None, :]
        options = {"most": UNROLLED, "groups": c, "boundary": self.boundary}
        return _convolve(kernel, y, shift_and_add, **options) + _rows(self.bias, y)


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
class Filter:
    """F⁻¹(R(h|λ|²) ⊙ F y), R(z) = 1 / (1 + z) or 1 - z: Eq. (11), or Eq. (9), by the DFT as a matrix product.

    With boundary="symmetric" F is the cosine transform along the grid, and R is averaged over the signs of the grid's
    frequencies, as in `depthwise_resolvent`.

    Attributes:
        stencil: θ of K, [*window, C].
        h: time step.
        integrator: "imex_euler" for R(z) = 1 / (1 + z), "forward_euler" for R(z) = 1 - z.
        grid: points per axis.
        circulant: whether K = K_circ(θ), Eq. (12), whose F has the channels as one more axis.
        boundary: what lies outside the grid.
    """

    stencil: NDArray[np.float32]
    h: float
    integrator: Literal["imex_euler", "forward_euler"]
    grid: tuple[int, ...]
    circulant: bool = False
    boundary: ResolventBoundary = "periodic"

    @property
    def mirrored(self) -> int:
        """Number of axes, the grid's or none, along which F is the cosine transform."""
        return len(self.grid) if self.boundary == "symmetric" else 0

    @property
    def axes(self) -> tuple[int, ...]:
        """Points along each axis of F."""
        return (*self.grid, self.stencil.shape[-1]) if self.circulant else self.grid

    @property
    def period(self) -> tuple[int, ...]:
        """Points along each axis after which features repeat: 2n where an axis of n points is mirrored."""
        return tuple(2 * n if axis < self.mirrored else n for axis, n in enumerate(self.axes))

    @property
    def bases(self) -> list[NDArray[np.float64]]:
        """F along each axis: an orthonormal matrix."""
        return _bases(self.axes, self.mirrored)

    @cached_property
    def decay(self) -> NDArray[np.float64]:
        """z = h|λ|², [*period, C]."""
        # The position of the stencil's centre changes only the phase of λ.
        λ = np.fft.fftn(np.float64(self.stencil), s=self.period, axes=range(len(self.period)))
        return self.h * (λ.real**2 + λ.imag**2)

    @cached_property
    def factors(self) -> NDArray[np.float64]:
        """R(h|λ|²), [*period, C]; its part that is even in the frequency of each axis that is mirrored."""
        factors = 1 / (1 + self.decay) if self.integrator == "imex_euler" else 1 - self.decay
        for axis in range(self.mirrored):
            factors = (factors + np.roll(np.flip(factors, axis), 1, axis)) / 2
        return factors

    @property
    def symbol(self) -> NDArray[np.float64]:
        """The eigenvalues, [*grid, C]: R(h|λ|²) at the frequencies of F."""
        return self.factors[tuple(map(slice, self.grid))]

    @cached_property
    def response(self) -> NDArray[np.float64]:
        """The impulse response, [*period, C], centred at n // 2: for the implicit step, its Green's function."""
        axes = range(len(self.period))
        return np.fft.fftshift(np.fft.ifftn(self.factors, axes=axes).real, axes)

    @cached_property
    def parts(self) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """{S: A_S} of `real_parts`, each [*axes, channels that F does not transform]."""
        with jax.ensure_compile_time_eval():
            parts = _real_parts(self.symbol.reshape(*self.axes, -1), self.mirrored)
            return {subset: np.asarray(part, np.float32) for subset, part in parts.items()}

    def cut(self, radius: Sequence[int]) -> Depthwise:
        """The impulse response within |x_i| ≤ radius_i as a stencil, with `dropped` the ℓ¹ norm of the rest."""
        dims = len(self.grid)
        window = [min(2 * r + 1, n) for r, n in zip(radius, self.period[:dims], strict=True)]
        box = tuple(
            slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(self.period[:dims], window, strict=True)
        )
        outside = np.abs(self.response)
        outside[box] = 0
        return Depthwise(self.response[box], dropped=outside.sum(tuple(range(dims))), boundary=self.boundary)

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        options = {"subsets": tuple(self.parts), "axes": self.axes, "mirrored": self.mirrored}
        return per_shard(_filtered, len(self.grid), y, *self.parts.values(), **options)


@partial(jax.jit, static_argnums=1)  # outside of any jit each operation would be compiled
def _real_parts(symbol, mirrored):
    if mirrored:  # and even along the channels
        return {(): reduce(slots, range(mirrored, symbol.ndim - 1), symbol)}
    return real_parts(both_signs(symbol))


def _filtered(y, *parts, subsets, axes, mirrored):
    bases = _bases(axes, mirrored)
    spectrum = y[..., None] if len(axes) == y.ndim - 1 else y  # with the channels F has one more axis
    for axis, basis in enumerate(bases, 1):
        spectrum = real_transform(spectrum, basis, axis)
    terms = (jnp.flip(spectrum, [i + 1 for i in s]) * part[None] for s, part in zip(subsets, parts, strict=True))
    result = reduce(jnp.add, terms)
    for axis, basis in enumerate(bases, 1):
        result = real_transform(result, basis.T, axis)
    return result.reshape(y.shape)


def _bases(axes, mirrored):
    """F along each axis, the first ones mirrored: orthonormal matrices."""
    return [(cosine_basis if axis < mirrored else real_basis)(n) for axis, n in enumerate(axes)]


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
