"""Implements the layers around the blocks of Section 4's network, such as opening, connecting and classifier.

A network with the head "pixels" may also have a decoder. Each of its expanding layers returns to the grid of a block.
The network adds the input of that block's connecting layer to the result.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import lecun_normal

from lowcost.arguments import promote
from lowcost.nn import operations as ops
from lowcost.nn.initializers import Initializer, opening_normal, stable_stencil
from lowcost.nn.limits import Limits
from lowcost.nn.normalization import Normalized, constants, mean_and_variance, on_valid
from lowcost.operators.depthwise import depthwise
from lowcost.operators.fully_coupled import fully_coupled
from lowcost.operators.pointwise import pointwise
from lowcost.spectral import symbol


class Standardization(nn.Module):
    """(y - μ) / d of each channel: constants of the training images, which are part of the network; not in the paper.

    Attributes:
        means: μ, one per channel.
        deviations: d, one per channel.
    """

    means: Sequence[float]
    deviations: Sequence[float]

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape, in float32 at least."""
        if y.shape[-1] != len(self.means):
            remedy = "make the network with one mean and deviation per channel"
            raise ValueError(
                f"images must have {len(self.means)} channels, not counting a mask, got {y.shape[-1]}; {remedy}"
            )
        return ops.run(self.operations(y.shape[1:-1]), promote(y))

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """y - μ, then / d: in this order, a mean that is large compared with d costs no digits."""
        return ops.Scale(np.ones(len(self.means)), -np.array(self.means)), ops.Scale(1 / np.array(self.deviations))


class Opening(Normalized):
    """σ(N(K(θ) y)) with a fully coupled 5x5 stencil: from the image's channels to the first block's.

    Attributes:
        features: channels of the first block.
        kernel_size: points of the stencil per axis.
        stencil_init: initialiser of the stencil.
        fixed_scale: of N, as in `Normalize`.
    """

    features: int
    kernel_size: int = 5
    stencil_init: Initializer = opening_normal

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, features]."""
        window = (self.kernel_size,) * (y.ndim - 2)
        stencil = self.param("stencil", self.stencil_init, (*window, y.shape[-1], self.features), jnp.float32)
        return nn.relu(self.normalize(fully_coupled(stencil.astype(y.dtype), y), train=train, mask=mask))

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """a ⊙ (K y) + b, then σ."""
        (stencil,), (a, b) = constants(self, "stencil"), self.normalize.scale_and_shift()
        return ops.Convolution(a * stencil, b), ops.Relu()

    def weight_limits(self, bound: float) -> Limits:
        """‖K‖ = bound."""
        return {"stencil": bound}


class Connecting(Normalized):
    """pool(N([x; K_dw(θ) x])): doubles the channels and averages over pixels, Section 4.

    Once μ and σ² are known, N is affine, so that the average may be taken before N. The 2C normalised channels of the
    whole grid are then never stored. μ and σ² are computed from all pixels, not from the averages. If features are
    masked, all averages are over valid points, and a window without valid points gives 0.

    Attributes:
        pooling: `AveragePool()`, of 2x2 pixels, between two blocks; `GlobalAveragePool()` after the last block; None to
            keep every pixel.
        kernel_size: points of the stencil per axis.
        keeps_input: whether the decoder needs the layer's input.
        fixed_scale: of N, as in `Normalize`.
    """

    pooling: ops.AveragePool | ops.GlobalAveragePool | None
    kernel_size: int = 3
    keeps_input: bool = False

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → [B, *⌈grid / 2⌉, 2C], [B, 2C], or without pooling [B, *grid, 2C]."""
        stencil = self.param("stencil", stable_stencil(), (*(self.kernel_size,) * (y.ndim - 2), y.shape[-1]))
        halves = [y, depthwise(stencil, y)]

        def statistics() -> tuple[jax.Array, jax.Array]:
            means, variances = zip(*(mean_and_variance(half, mask) for half in halves), strict=True)
            return jnp.concatenate(means), jnp.concatenate(variances)

        pool = self.pooling or (lambda y: y)
        averages = jnp.concatenate([pool(on_valid(promote(half), mask)) for half in halves], axis=-1)
        valid = None
        if mask is not None:
            share = pool(promote(mask))
            valid = share > 0
            averages = averages / jnp.where(valid, share, 1)
        result = on_valid(self.normalize.scaled(averages, statistics, train=train), valid)
        return result if result.ndim == 2 else result.astype(y.dtype)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ), [*grid, C]."""
        return symbol(self.get_variable("params", "stencil"), grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """[a₁ ⊙ x + b₁; a₂ ⊙ (K_dw x) + b₂], then the averages."""
        (stencil,) = constants(self, "stencil")
        (a1, a2), (b1, b2) = (np.split(x, 2) for x in self.normalize.scale_and_shift())
        doubled = ops.Concatenate(((ops.Scale(a1, b1),), (ops.Depthwise(a2 * stencil, b2),)))
        return (doubled,) if self.pooling is None else (doubled, self.pooling)

    def weight_limits(self, bound: float) -> Limits:
        """‖K_dw‖ = √(bound² - 1), with which ‖[x; K_dw x]‖ ≤ bound · ‖x‖; without the factor of the averages."""
        return {"stencil": math.sqrt(bound**2 - 1)}


class Expanding(Normalized):
    """x_⌊i/2⌋ with x = N(M y): halves the channels and repeats every pixel; the counterpart of `Connecting`.

    Attributes:
        grid: points per axis of the result; those of y are half as many, rounded up.
        fixed_scale: of N, as in `Normalize`.
    """

    grid: tuple[int, ...]

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *⌈grid / 2⌉, 2C] → [B, *grid, C]."""
        matrix = self.param("matrix", lecun_normal(), (y.shape[-1], y.shape[-1] // 2), jnp.float32)
        return ops.Upsample(self.grid)(self.normalize(pointwise(matrix.astype(y.dtype), y), train=train))

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """a ⊙ (M y) + b, then every pixel is repeated."""
        (matrix,), (a, b) = constants(self, "matrix"), self.normalize.scale_and_shift()
        return ops.Pointwise(a * matrix, b), ops.Upsample(self.grid)

    def weight_limits(self, bound: float) -> Limits:
        """‖M‖ = bound, without the factor of the repetition."""
        return {"matrix": bound}


class Classifier(nn.Dense):
    """W y + μ: the linear classifier of Section 4, of the averages [B, C] or of each point, [B, *grid, C]."""

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """W y + μ with constant weights."""
        return (ops.Pointwise(*constants(self, "kernel", "bias")),)

    def weight_limits(self, bound: float) -> Limits:
        """‖W‖ = bound."""
        return {"kernel": bound}
