"""Holds the weights of the steps of Section 4's networks as Flax modules; `lowcost` holds the mathematics.

A step keeps the shape and dtype of its features [B, *grid, C]. Bound to its variables, `step.bind(variables)`, it has

- `operations(grid)`: what it computes at inference, from which its stability bound, its cost and its exported form
  follow (`lowcost.nn.operations`); a step of your own needs nothing else;
- `symbol(grid)`: the symbol of its convolution, for `lowcost.analysis`;
- `weight_limits(bound)`: the operator norms of its weights that make its Lipschitz constant at most `bound`, for
  `lowcost.nn.norm_budget`.

In a masked network features are 0 on padding. Its steps also receive `mask`, boolean [B, *grid, 1], which is True on
valid points, and pass it to their normalisations. The network itself sets their results to 0 on padding.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import lecun_normal

from lowcost.nn import initializers
from lowcost.nn import operations as ops
from lowcost.nn.limits import Limits, change_limit
from lowcost.nn.normalization import Normalized, constants
from lowcost.nn.reaction_diffusion import Reaction
from lowcost.operators.depthwise import depthwise
from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
from lowcost.operators.linear_mix import as_fully_coupled, linear_mix, linear_mix_adjoint
from lowcost.spectral import coupled_symbol, symbol
from lowcost.time_stepping import Map, forward_euler


class _ResidualStep(Normalized):
    """y + h K₂ᵀ σ(N(K₁ y)): Eqs. (1) and (3)."""

    h: float = 1.0
    kernel_size: int = 3

    @nn.nowrap
    def _step(self, operator: Map, adjoint: Map, y: jax.Array, **how: Any) -> jax.Array:
        """Takes the step with K₁ and K₂ᵀ; `how` are the options of N."""

        def f(y: jax.Array) -> jax.Array:
            return adjoint(nn.relu(self.normalize(operator(y), **how)))

        return forward_euler(f, y, self.h)


class ResNetStep(_ResidualStep):
    """y + h K(θ²)ᵀ σ(N(K(θ¹) y)), K fully coupled: Eqs. (1) and (3), where h = 1.

    Attributes:
        h: time step.
        kernel_size: points of the stencils per axis.
        fixed_scale: of N, as in `Normalize`.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        shape = (self.kernel_size,) * (y.ndim - 2) + (y.shape[-1],) * 2
        stencils = (self.param(f"stencil{i}", lecun_normal(), shape, jnp.float32) for i in (1, 2))
        first, second = (stencil.astype(y.dtype) for stencil in stencils)
        return self._step(
            partial(fully_coupled, first), partial(fully_coupled_adjoint, second), y, train=train, mask=mask
        )

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K(θ¹) and of K(θ²), [2, *grid, C_in, C_out]: one matrix per frequency."""
        return jnp.stack([coupled_symbol(self.get_variable("params", f"stencil{i}"), grid) for i in (1, 2)])

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """y + (hK(θ²))ᵀ σ(a ⊙ (K(θ¹) y) + b)."""
        (first, second), (a, b) = constants(self, "stencil1", "stencil2"), self.normalize.scale_and_shift()
        adjoint = _mirrored(second, grid).swapaxes(-1, -2)
        return (ops.Sum(((), (ops.Convolution(a * first, b), ops.Relu(), ops.Convolution(self.h * adjoint)))),)

    def weight_limits(self, bound: float) -> Limits:
        """‖K(θ¹)‖ = ‖K(θ²)‖ = √((bound - 1) / h)."""
        return dict.fromkeys(("stencil1", "stencil2"), math.sqrt(change_limit(bound, self.h)))


class LinearMixStep(_ResidualStep):
    """y + h K_lm(θ²)ᵀ σ(N(K_lm(θ¹) y)): Eqs. (1) and (3) with the operators of Eq. (7), where h = 1.

    Attributes:
        h: time step.
        kernel_size: points of the stencils per axis.
        fixed_scale: of N, as in `Normalize`.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        window, c = (self.kernel_size,) * (y.ndim - 2), y.shape[-1]

        def weights(i: int) -> tuple[jax.Array, jax.Array]:
            stencil = self.param(f"stencil{i}", initializers.linear_mix_normal, (*window, c), jnp.float32)
            return stencil, self.param(f"matrix{i}", initializers.linear_mix_matrix_normal, (c, c), jnp.float32)

        operator, adjoint = partial(linear_mix, *weights(1)), partial(linear_mix_adjoint, *weights(2))
        return self._step(operator, adjoint, y, train=train, mask=mask)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_lm(θ¹) and of K_lm(θ²), [2, *grid, C_in, C_out]: M plus the stencils' symbols on its diagonal."""
        params = self.variables["params"]
        coupled = [as_fully_coupled(params[f"stencil{i}"], params[f"matrix{i}"]) for i in (1, 2)]
        return jnp.stack([coupled_symbol(stencil, grid) for stencil in coupled])

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """y + (hK_lm(θ²))ᵀ σ(a ⊙ (K_lm(θ¹) y) + b)."""
        stencil1, matrix1, stencil2, matrix2 = constants(self, "stencil1", "matrix1", "stencil2", "matrix2")
        (a, b), h = self.normalize.scale_and_shift(), self.h
        first = ops.Sum(((ops.Depthwise(a * stencil1, b),), (ops.Pointwise(a * matrix1),)))
        adjoint = ops.Sum(((ops.Depthwise(h * _mirrored(stencil2, grid)),), (ops.Pointwise(h * matrix2.T),)))
        return (ops.Sum(((), (first, ops.Relu(), adjoint))),)

    def weight_limits(self, bound: float) -> Limits:
        """‖K_dw‖ = ‖M‖ = √((bound - 1) / h) / 2 of both K_lm, whose norms are at most the sum of these two."""
        half = math.sqrt(change_limit(bound, self.h)) / 2
        return dict.fromkeys(("stencil1", "matrix1", "stencil2", "matrix2"), half)


class MobileNetStep(Normalized):
    """σ(N(M(θ²) σ(N(K_dw(θ¹) y)))): Eq. (13). Two layers and no time step: y itself is not passed on.

    Attributes:
        kernel_size: points of the stencil per axis.
        fixed_scale: of N, as in `Normalize`.
    """

    kernel_size: int = 3

    def setup(self) -> None:
        """N of the convolution; the reaction has its own."""
        super().setup()
        self.reaction = Reaction(fixed_scale=self.fixed_scale)

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        window = (self.kernel_size,) * (y.ndim - 2)
        stencil = self.param("stencil", initializers.near_identity, (*window, y.shape[-1]), jnp.float32)
        y = nn.relu(self.normalize(depthwise(stencil, y), train=train, mask=mask))
        return self.reaction(y, train=train, mask=mask)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ¹), [*grid, C]."""
        return symbol(self.get_variable("params", "stencil"), grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """σ(a ⊙ (K_dw y) + b), then the reaction."""
        (stencil,), (a, b) = constants(self, "stencil"), self.normalize.scale_and_shift()
        return ops.Depthwise(a * stencil, b), ops.Relu(), *self.reaction.operations(grid)

    def weight_limits(self, bound: float) -> Limits:
        """‖K_dw‖ = ‖M‖ = √bound."""
        return {"stencil": math.sqrt(bound), "reaction": {"matrix": math.sqrt(bound)}}


def _mirrored(stencil, grid):
    """θ₋ⱼ of a stencil on a periodic grid, in NumPy: an even axis is first extended by a zero, up to the grid's size.

    Then its centre, index m // 2, is in the middle. An even axis of all n points of the grid is periodic: θ₋ⱼ = θₙ₋ⱼ.
    """
    for axis, n in enumerate(grid):
        m = stencil.shape[axis]
        if m % 2 == 0 and m < n:
            stencil = np.pad(stencil, [(0, axis == i) for i in range(stencil.ndim)])
        stencil = np.roll(np.flip(stencil, axis), int(m % 2 == 0 and m == n), axis)
    return stencil
