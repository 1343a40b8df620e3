"""The layers of Section 4's network before, between and after its blocks: opening, connecting, pooling, classifier."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowcost.nn import operations as ops
from lowcost.nn.initializers import Initializer, opening_normal, stable_stencil
from lowcost.nn.steps import Normalized, constants
from lowcost.operators.depthwise import depthwise
from lowcost.operators.fully_coupled import fully_coupled
from lowcost.spectral import symbol


class Opening(Normalized):
    """σ(N(K(θ) y)) with a fully coupled 5x5 stencil: from the image's channels to the first block's.

    Attributes:
        features: channels of the first block.
        kernel_size: points of the stencil per axis.
        stencil_init: initialiser of the stencil.
    """

    features: int
    kernel_size: int = 5
    stencil_init: Initializer = opening_normal

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, features]."""
        window = (self.kernel_size,) * (y.ndim - 2)
        stencil = self.param("stencil", self.stencil_init, (*window, y.shape[-1], self.features), jnp.float32)
        return nn.relu(self.normalize(fully_coupled(stencil.astype(y.dtype), y), train=train))

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """a ⊙ (K y) + b, then σ."""
        (stencil,), (a, b) = constants(self, "stencil"), self.normalize.scale_and_shift()
        return ops.Convolution(a * stencil, b), ops.Relu()


class Connecting(Normalized):
    """N([x; K_dw(θ) x]): twice the channels, Section 4.

    Attributes:
        kernel_size: points of the stencil per axis.
    """

    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → [B, *grid, 2C]."""
        stencil = self.param("stencil", stable_stencil(), (*(self.kernel_size,) * (y.ndim - 2), y.shape[-1]))
        return self.normalize(jnp.concatenate([y, depthwise(stencil, y)], axis=-1), train=train)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ), [*grid, C]."""
        return symbol(self.get_variable("params", "stencil"), grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """[a₁ ⊙ x + b₁; a₂ ⊙ (K_dw x) + b₂]."""
        (stencil,) = constants(self, "stencil")
        (a1, a2), (b1, b2) = (np.split(x, 2) for x in self.normalize.scale_and_shift())
        return (ops.Concatenate(((ops.Scale(a1, b1),), (ops.Depthwise(a2 * stencil, b2),))),)


class Pooling(nn.Module):
    """An average pooling, as a layer with a name.

    Attributes:
        operation: the pooling.
    """

    operation: ops.AveragePool | ops.GlobalAveragePool

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the shape that the operation returns."""
        return self.operation(y)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """The pooling itself."""
        return (self.operation,)


class Classifier(nn.Dense):
    """W y + μ: the linear classifier of Section 4."""

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """W y + μ with constant weights."""
        return (ops.Pointwise(*constants(self, "kernel", "bias")),)
