"""The steps of Section 4's networks as Flax modules: they hold the weights, `lowcost` holds the mathematics.

Each keeps the shape and dtype of its features [B, *grid, C], and tells what it is made of: its time step `h`, and
`step.bind(variables).symbol(grid)`, the symbol of its convolution, for `lowcost.analysis`.
"""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal

from lowcost.nn.initializers import (
    linear_mix_matrix,
    linear_mix_stencil,
    near_identity,
    stable_shared_stencil,
    stable_stencil,
)
from lowcost.operators.circulant import circulant_diffusion, circulant_resolvent
from lowcost.operators.depthwise import depthwise, depthwise_diffusion, depthwise_resolvent
from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
from lowcost.operators.linear_mix import linear_mix, linear_mix_adjoint
from lowcost.operators.pointwise import pointwise
from lowcost.spectral import circulant_symbol, coupled_symbol, promote, symbol
from lowcost.time_stepping import forward_euler, imex_euler, reaction_diffusion

EPSILON = 1e-5
"""Added to a variance before the root is taken."""

MOMENTUM = 0.9
"""Of the running means of the statistics."""


class Normalize(nn.Module):
    """N: (y - μ) / √(σ² + ε) of each channel, without learned scale and shift, as Table 2's weight counts imply.

    In training μ and σ² are those of the (global) batch, at evaluation their running means; float32 at least.
    Computed as a·y + b, so that the way back needs nothing but y: `flax.linen.BatchNorm` writes y - μ beside it.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape, each channel with mean 0 and variance 1."""
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, y.shape[-1], jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, y.shape[-1], jnp.float32)
        mean, var = running_mean.value, running_var.value
        wide, axes = promote(y), range(y.ndim - 1)
        if train:
            mean = wide.mean(axes)
            var = jnp.maximum((wide**2).mean(axes) - mean**2, 0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value += ((1 - MOMENTUM) * (new - running.value)).astype(running.value.dtype)
        a = jax.lax.rsqrt(var + EPSILON)
        scale, shift = jnp.expand_dims(a, axes), jnp.expand_dims(mean * a, axes)
        return (wide * scale - shift).astype(y.dtype)


class Reaction(nn.Module):
    """σ(N(M(θ) y)): the reaction of Eq. (8), between the channels of a pixel, with σ = ReLU."""

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        matrix = self.param("matrix", lecun_normal(), (y.shape[-1], y.shape[-1]), jnp.float32)
        return nn.relu(Normalize(name="normalize")(pointwise(matrix.astype(y.dtype), y), train=train))


class ResNetStep(nn.Module):
    """y + h K(θ²)ᵀ σ(N(K(θ¹) y)), K fully coupled: Eqs. (1) and (3), where h = 1.

    Attributes:
        h: time step.
        kernel_size: points of the stencils per axis.
    """

    h: float = 1.0
    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        shape = (*_window(self, y), y.shape[-1], y.shape[-1])
        first, second = (
            self.param(name, lecun_normal(), shape, jnp.float32).astype(y.dtype) for name in ("stencil1", "stencil2")
        )
        normalize = partial(Normalize(name="normalize"), train=train)
        return forward_euler(
            lambda y: fully_coupled_adjoint(second, nn.relu(normalize(fully_coupled(first, y)))), y, self.h
        )

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K(θ¹) and of K(θ²), [2, *grid, C_in, C_out]: a matrix a frequency."""
        return jnp.stack([coupled_symbol(_weights(self)[name], grid) for name in ("stencil1", "stencil2")])


class LinearMixStep(nn.Module):
    """y + h K_lm(θ²)ᵀ σ(N(K_lm(θ¹) y)): Eqs. (1) and (3) with the operators of Eq. (7), where h = 1.

    Attributes:
        h: time step.
        kernel_size: points of the stencils per axis.
    """

    h: float = 1.0
    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        c = y.shape[-1]
        first, second = (
            (
                self.param(f"stencil{i}", linear_mix_stencil, (*_window(self, y), c), jnp.float32),
                self.param(f"matrix{i}", linear_mix_matrix, (c, c), jnp.float32),
            )
            for i in (1, 2)
        )
        normalize = partial(Normalize(name="normalize"), train=train)
        return forward_euler(
            lambda y: linear_mix_adjoint(*second, nn.relu(normalize(linear_mix(*first, y)))), y, self.h
        )

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_lm(θ¹) and of K_lm(θ²), [2, *grid, C_in, C_out]: the stencils' on the diagonal of M."""
        weights = _weights(self)

        def mixed(i):
            λ, matrix = symbol(weights[f"stencil{i}"], grid), weights[f"matrix{i}"]
            eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
            return jnp.expand_dims(eye, range(len(grid))) * λ[..., None] + jnp.expand_dims(matrix, range(len(grid)))

        return jnp.stack([mixed(1), mixed(2)])


class MobileNetStep(nn.Module):
    """σ(N(M(θ²) σ(N(K_dw(θ¹) y)))): Eq. (13). Two layers and no time step: nothing of y is kept beside them.

    Attributes:
        kernel_size: points of the stencil per axis.
    """

    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        stencil = self.param("stencil", near_identity, (*_window(self, y), y.shape[-1]), jnp.float32)
        y = nn.relu(Normalize(name="normalize")(depthwise(stencil, y), train=train))
        return Reaction(name="reaction")(y, train=train)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ¹), [*grid, C]."""
        return symbol(_weights(self)["stencil"], grid)


class _DepthwiseDiffusion(nn.Module):
    """What the steps with K = K_dw(θ) share: θ [*window, C], "stencil", its symbol, and h."""

    h: float = 1.0
    kernel_size: int = 3

    @nn.nowrap  # no method of its own to Flax, which would report θ among the features
    def _stencil(self, y: jax.Array) -> jax.Array:
        return self.param("stencil", stable_stencil(self.h), (*_window(self, y), y.shape[-1]))

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ), [*grid, C]."""
        return symbol(_weights(self)["stencil"], grid)


class _CirculantDiffusion(nn.Module):
    """What the steps with K = K_circ(θ) share: φ = θ·√C [*window, C], "shared_stencil", the symbol of θ, and h.

    With φ as the weight what an optimiser's step in all weights does to λ does not grow with the C pairs of channels
    that share each. With θ itself Adam's 0.01 throws the explicit step far beyond its limit at once.
    """

    h: float = 1.0
    kernel_size: int = 3

    @nn.nowrap  # no method of its own to Flax, which would report θ among the features
    def _stencil(self, y: jax.Array) -> jax.Array:
        shape = (*_window(self, y), y.shape[-1])
        return unshared(self.param("shared_stencil", stable_shared_stencil(self.h), shape))

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_circ(θ), [*grid, C], the last axis being the frequency along the channels."""
        return circulant_symbol(unshared(_weights(self)["shared_stencil"]), grid)


class ExplicitRDStep(_DepthwiseDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_dw: Eq. (9). Linearly stable while h·max|λ|² ≤ 2.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        diffusion = partial(depthwise_diffusion, self._stencil(y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return forward_euler(reaction_diffusion(diffusion, reaction), y, self.h)


class ImplicitRDStep(_DepthwiseDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_dw: Eq. (11). Its linear part is stable for every h and θ.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        resolvent = partial(depthwise_resolvent, self._stencil(y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return imex_euler(resolvent, reaction, y, self.h)


class CirculantRDStep(_CirculantDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_circ: Eqs. (9) and (12). Linearly stable while h·max|λ|² ≤ 2.

    Its weights are φ = θ·√C, "shared_stencil", so that one learning rate suits them and all others.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        diffusion = partial(circulant_diffusion, self._stencil(y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return forward_euler(reaction_diffusion(diffusion, reaction), y, self.h)


class ImplicitCirculantRDStep(_CirculantDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_circ: Eq. (11) with the operator of Eq. (12), beyond the paper.

    Its linear part is stable for every h and θ, and couples all pixels and all channels in one step. Its weights are
    φ = θ·√C as in `CirculantRDStep`.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        resolvent = partial(circulant_resolvent, self._stencil(y))
        reaction = partial(Reaction(name="reaction"), train=train)
        return imex_euler(resolvent, reaction, y, self.h)


def unshared(φ: jax.Array) -> jax.Array:
    """θ = φ / √C, [*window, C]: the stencil of K_circ from the weights that are trained."""
    return φ / math.sqrt(φ.shape[-1])


def _window(step, y):
    return (step.kernel_size,) * (y.ndim - 2)


def _weights(step):
    return step.variables["params"]
