"""What a trained network of Section 4 is made of once nothing is learned: constants applied to features [B, *grid, C].

All images at once, and what differs by platform is chosen when a program is lowered: so one trace serves every device,
where the operators of `lowcost` choose while they are traced. The stencils are periodic, as in the paper; an axis of m
points is centred at index m // 2.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowcost.operators.boundary import pad
from lowcost.operators.sliding import UNROLLED
from lowcost.spectral import real_parts, real_transform

FULL = jax.lax.Precision.HIGHEST  # accelerators would round products to fewer bits


@dataclass(frozen=True, eq=False)
class Convolution:
    """K y + b: Eq. (4).

    Attributes:
        stencil: [*window, C_in, C_out].
        bias: [C_out].
    """

    stencil: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, C_out]."""
        window = self.stencil.shape[:-2]

        def product(padded: jax.Array) -> jax.Array:
            patches = jnp.concatenate(_shifted(padded, window), axis=-1)
            return jnp.matmul(patches, self.stencil.reshape(-1, self.stencil.shape[-1]), precision=FULL)

        convolve = partial(_convolve, self.stencil)
        cpu = product if math.prod(window) <= 3 * UNROLLED else convolve
        convolved = jax.lax.platform_dependent(pad(y, window, "periodic"), cpu=cpu, default=convolve)
        return convolved + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Depthwise:
    """K_dw y + b: Eq. (5).

    Attributes:
        stencil: [*window, C].
        bias: [C].
        dropped: [C], ℓ¹ norm of what this stencil leaves out of the map that it stands for.
    """

    stencil: NDArray[np.float32]
    bias: NDArray[np.float32]
    dropped: NDArray[np.float64] | None = None

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        *window, c = self.stencil.shape

        def shift_and_add(padded: jax.Array) -> jax.Array:
            weights = [_rows(x, y) for x in self.stencil.reshape(-1, c)]
            return reduce(jnp.add, map(jnp.multiply, weights, _shifted(padded, window)))

        convolve = partial(_convolve, self.stencil[..., None, :], groups=c)
        cpu = shift_and_add if math.prod(window) <= UNROLLED else convolve
        convolved = jax.lax.platform_dependent(pad(y, window, "periodic"), cpu=cpu, default=convolve)
        return convolved + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Pointwise:
    """M y + b, Eq. (6); on features without a grid, [B, C_in], the classifier.

    Attributes:
        matrix: [C_in, C_out].
        bias: [C_out].
    """

    matrix: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, C_out]."""
        return jnp.matmul(y, self.matrix, precision=FULL) + _rows(self.bias, y)


@dataclass(frozen=True, eq=False)
class Filter:
    """F⁻¹(R(h|λ|²) ⊙ F y), R(z) = 1 / (1 + z) or 1 - z: Eq. (11), or Eq. (9), by the DFT as a matrix product.

    Attributes:
        stencil: θ of K, [*window, C].
        h: time step.
        integrator: "imex_euler" or "forward_euler".
        grid: points per axis.
        circulant: whether K = K_circ(θ), Eq. (12), whose F has the channels as one more axis.
    """

    stencil: NDArray[np.float32]
    h: float
    integrator: Literal["imex_euler", "forward_euler"]
    grid: tuple[int, ...]
    circulant: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """Points along each axis of F."""
        return (*self.grid, self.stencil.shape[-1]) if self.circulant else self.grid

    @cached_property
    def symbol(self) -> NDArray[np.float64]:
        """R(h|λ|²), [*grid, C]."""
        # The place of the stencil's centre turns the phase of λ alone.
        λ = np.fft.fftn(np.float64(self.stencil), s=self.axes, axes=range(len(self.axes)))
        z = self.h * (λ.real**2 + λ.imag**2)
        return 1 / (1 + z) if self.integrator == "imex_euler" else 1 - z

    @cached_property
    def response(self) -> NDArray[np.float64]:
        """Response to an impulse, [*grid, C], centred at n // 2: of the implicit step, its Green's function."""
        axes = range(len(self.axes))
        return np.fft.fftshift(np.fft.ifftn(self.symbol, axes=axes).real, axes)

    @cached_property
    def parts(self) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """{S: A_S} of `lowcost.spectral.real_parts`, each [*axes, channels that F leaves alone]."""
        with jax.ensure_compile_time_eval():
            parts = real_parts(jnp.asarray(self.symbol.reshape(*self.axes, -1)))
            return {subset: np.asarray(part, np.float32) for subset, part in parts.items()}

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        spectrum = y[..., None] if self.circulant else y
        axes = range(1, 1 + len(self.axes))
        for axis in axes:
            spectrum = real_transform(spectrum, axis=axis, inverse=False)
        mirrored = (jnp.flip(spectrum, [i + 1 for i in subset]) * part[None] for subset, part in self.parts.items())
        result = reduce(jnp.add, mirrored)
        for axis in axes:
            result = real_transform(result, axis=axis, inverse=True)
        return result.reshape(y.shape)


@dataclass(frozen=True, eq=False)
class Relu:
    """max(y, 0) = σ(y), Eq. (3)."""

    def __call__(self, y: jax.Array) -> jax.Array:
        """Any shape."""
        return jnp.maximum(y, 0)


@dataclass(frozen=True, eq=False)
class AveragePool:
    """(y₀₀ + y₀₁ + y₁₀ + y₁₁) / 4 of every 2x2 pixels: the pooling between blocks, Section 4."""

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *(grid / 2), C]."""
        corners = itertools.product(*[(slice(0, None, 2), slice(1, None, 2))] * (y.ndim - 2))
        return reduce(jnp.add, [y[:, *corner] for corner in corners]) / 2 ** (y.ndim - 2)


@dataclass(frozen=True, eq=False)
class GlobalAveragePool:
    """Σ_x y_x / n: the average over the grid, the last pooling of Section 4."""

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, C]."""
        return jnp.mean(y, axis=range(1, y.ndim - 1))


@dataclass(frozen=True, eq=False)
class Sum:
    """Σ of what its branches make of y; a branch without operations is y itself, as in Eq. (1).

    Attributes:
        branches: operations to apply one after another.
    """

    branches: tuple[tuple["Operation", ...], ...]

    def __call__(self, y: jax.Array) -> jax.Array:
        """Shaped as each branch's result."""
        return reduce(jnp.add, [run(branch, y) for branch in self.branches])


@dataclass(frozen=True, eq=False)
class Concatenate:
    """y ↦ [A(y); B(y)]: what its branches make of y side by side, [x; K x] of Section 4's connecting layer.

    Attributes:
        branches: operations to apply one after another.
    """

    branches: tuple[tuple["Operation", ...], ...]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *grid, Σ of the branches' channels]."""
        return jnp.concatenate([run(branch, y) for branch in self.branches], axis=-1)


Operation = Convolution | Depthwise | Pointwise | Filter | Relu | AveragePool | GlobalAveragePool | Sum | Concatenate


def run(operations: Sequence[Operation], y: jax.Array) -> jax.Array:
    """(f_n ∘ … ∘ f₁)(y): the operations one after another on features y [B, *grid, C], as Section 4's network."""
    for operation in operations:
        y = operation(y)
    return y


def _shifted(padded, window):
    """The grid moved by every offset of the window."""
    grid = [n - (m - 1) for n, m in zip(padded.shape[1:-1], window, strict=True)]
    offsets = itertools.product(*map(range, window))
    return [padded[:, *(slice(j, j + n) for j, n in zip(offset, grid, strict=True))] for offset in offsets]


def _convolve(stencil, padded, *, groups=1):
    spatial = "XYZ"[: padded.ndim - 2]
    return jax.lax.conv_general_dilated(
        padded,
        stencil,
        window_strides=(1,) * len(spatial),
        padding="VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
        precision=FULL,
    )


def _rows(x, y):
    """x [C], with axes for those of y before the last."""
    return x.reshape(*(1,) * (y.ndim - 1), -1)
