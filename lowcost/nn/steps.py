"""The steps of Section 4's networks as Flax modules: they hold the weights, `lowcost` holds the mathematics."""

from functools import partial

import flax.linen as nn
import jax
from flax.linen.initializers import lecun_normal

from lowcost.nn.initializers import stable_stencil
from lowcost.operators.depthwise import depthwise_diffusion, depthwise_resolvent
from lowcost.operators.pointwise import pointwise
from lowcost.time_stepping import forward_euler, imex_euler, reaction_diffusion

EPSILON = 1e-5
"""Added to a variance before the root is taken."""


class Normalize(nn.Module):
    """N: batch normalisation over batch and grid without learned scale and shift, as Table 2's weight counts imply.

    In training with the statistics of the (global) batch, at evaluation with their running mean.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape, each channel with mean 0 and variance 1."""
        return nn.BatchNorm(
            not train, momentum=0.9, epsilon=EPSILON, use_scale=False, use_bias=False, name="statistics"
        )(y)


class Reaction(nn.Module):
    """σ(N(M(θ) y)): the reaction of Eq. (8), between the channels of a pixel, with σ = ReLU."""

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        matrix = self.param("matrix", lecun_normal(), (y.shape[-1], y.shape[-1]))
        return nn.relu(Normalize(name="normalize")(pointwise(matrix, y), train=train))


class ExplicitRDStep(nn.Module):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_dw: Eq. (9). Linearly stable while h·max|λ|² ≤ 2.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    h: float = 1.0
    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        diffusion = partial(depthwise_diffusion, _stencil(self, y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return forward_euler(reaction_diffusion(diffusion, reaction), y, self.h)


class ImplicitRDStep(nn.Module):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_dw: Eq. (11). Its linear part is stable for every h and θ.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    h: float = 1.0
    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        resolvent = partial(depthwise_resolvent, _stencil(self, y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return imex_euler(resolvent, reaction, y, self.h)


def _stencil(step, y):
    shape = (*(step.kernel_size,) * (y.ndim - 2), y.shape[-1])
    return step.param("stencil", stable_stencil(step.h), shape)
