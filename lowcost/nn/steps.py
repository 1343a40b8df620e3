"""The steps of Section 4's networks as Flax modules: they hold the weights, `lowcost` holds the mathematics.

A step keeps the shape and dtype of its features [B, *grid, C]. Bound to its variables, `step.bind(variables)`, it has

- `operations(grid)`: what it computes at inference, from which its stability bound, its cost and its exported form
  follow (`lowcost.nn.operations`); a step of your own needs nothing else;
- `symbol(grid)`: the symbol of its convolution, for `lowcost.analysis`.

In a masked network features are 0 on padding. Its steps also receive `mask`, boolean [B, *grid, 1], which is True on
valid points, and pass it to their normalisations. The network itself sets their results to 0 on padding.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import lecun_normal

from lowcost.arguments import ResolventBoundary, promote
from lowcost.nn import initializers
from lowcost.nn import operations as ops
from lowcost.nn.initializers import Initializer
from lowcost.operators.circulant import circulant_diffusion, circulant_resolvent
from lowcost.operators.depthwise import depthwise, depthwise_diffusion, depthwise_resolvent
from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
from lowcost.operators.linear_mix import as_fully_coupled, linear_mix, linear_mix_adjoint
from lowcost.operators.pointwise import pointwise
from lowcost.spectral import circulant_symbol, coupled_symbol, symbol
from lowcost.time_stepping import Map, forward_euler, imex_euler, reaction_diffusion

EPSILON = 1e-5
"""Added to a variance before its square root is taken."""

MOMENTUM = 0.9
"""Of the running means of the statistics."""


def mean_and_variance(y: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """μ and σ² of each channel of features [..., C], over valid points if masked, each [C], in float32 at least."""
    wide, axes = promote(y), range(y.ndim - 1)
    mean = wide.mean(axes, where=mask)
    return mean, jnp.maximum((wide**2).mean(axes, where=mask) - mean**2, 0)


def on_valid(y: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns features [B, *grid, C] with 0 on padding, or as they are if there is no mask."""
    return y if mask is None else jnp.where(mask, y, 0)


class Normalize(nn.Module):
    """N: (y - μ) / √(σ² + ε) of each channel, without learned scale and shift, as Table 2's weight counts imply.

    In training μ and σ² are those of the (global) batch, at inference their running means; float32 at least.
    Computed as a·y + b, so that the backward pass needs only y; `flax.linen.BatchNorm` stores y - μ as well.
    """

    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape; valid points have mean 0 and variance 1 per channel, the others are 0."""
        return on_valid(self.scaled(y, partial(mean_and_variance, y, mask), train=train), mask)

    @nn.compact
    def scaled(self, z: jax.Array, statistics: Callable[[], tuple[jax.Array, jax.Array]], *, train: bool) -> jax.Array:
        """a ⊙ z + b, where a and b normalise other features y: N y = a ⊙ y + b.

        If z is an average of pixels of y, the result is the average of N y over the same pixels.

        Args:
            z: features, [..., C].
            statistics: returns μ and σ² of y, each [C]; called in training only.
            train: whether to use `statistics()`; otherwise the running means are used.
        """
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, z.shape[-1], jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, z.shape[-1], jnp.float32)
        mean, var = statistics() if train else (running_mean.value, running_var.value)
        if train and not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value += ((1 - MOMENTUM) * (new - running.value)).astype(running.value.dtype)
        a = jax.lax.rsqrt(var + EPSILON)
        scale, shift = (jnp.expand_dims(x, range(z.ndim - 1)) for x in (a, mean * a))
        return (promote(z) * scale - shift).astype(z.dtype)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b of N y = a ⊙ y + b at inference, each [C], float64."""
        mean, var = (np.asarray(self.get_variable("batch_stats", name), np.float64) for name in ("mean", "var"))
        a = 1 / np.sqrt(var + EPSILON)
        return a, -mean * a


class Normalized(nn.Module):
    """A module with one normalisation N."""

    def setup(self) -> None:
        """N."""
        self.normalize = Normalize()


class Reaction(Normalized):
    """σ(N(M(θ) y)): the reaction of Eq. (8), between the channels of a pixel, with σ = ReLU."""

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        matrix = self.param("matrix", lecun_normal(), (y.shape[-1], y.shape[-1]), jnp.float32)
        return nn.relu(self.normalize(pointwise(matrix.astype(y.dtype), y), train=train, mask=mask))

    def operations(self, grid: Sequence[int], h: float = 1.0) -> tuple[ops.Operation, ...]:
        """h σ(N(M y)) = σ(h N(M y)), as h ≥ 0."""
        (matrix,), (a, b) = constants(self, "matrix"), self.normalize.scale_and_shift()
        return ops.Pointwise(h * a * matrix, h * b), ops.Relu()


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
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        shape = (*_window(self, y), y.shape[-1], y.shape[-1])
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
        adjoint = _mirrored(second, channel_axes=2).swapaxes(-1, -2)
        return (ops.Sum(((), (ops.Convolution(a * first, b), ops.Relu(), ops.Convolution(self.h * adjoint)))),)


class LinearMixStep(_ResidualStep):
    """y + h K_lm(θ²)ᵀ σ(N(K_lm(θ¹) y)): Eqs. (1) and (3) with the operators of Eq. (7), where h = 1.

    Attributes:
        h: time step.
        kernel_size: points of the stencils per axis.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        c = y.shape[-1]

        def weights(i: int) -> tuple[jax.Array, jax.Array]:
            stencil = self.param(f"stencil{i}", initializers.linear_mix_normal, (*_window(self, y), c), jnp.float32)
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
        adjoint = ops.Sum(((ops.Depthwise(h * _mirrored(stencil2)),), (ops.Pointwise(h * matrix2.T),)))
        return (ops.Sum(((), (first, ops.Relu(), adjoint))),)


class MobileNetStep(nn.Module):
    """σ(N(M(θ²) σ(N(K_dw(θ¹) y)))): Eq. (13). Two layers and no time step: y itself is not passed on.

    Attributes:
        kernel_size: points of the stencil per axis.
    """

    kernel_size: int = 3

    def setup(self) -> None:
        """N of the convolution; the reaction has its own."""
        self.normalize, self.reaction = Normalize(), Reaction()

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        stencil = self.param("stencil", initializers.near_identity, (*_window(self, y), y.shape[-1]), jnp.float32)
        y = nn.relu(self.normalize(depthwise(stencil, y), train=train, mask=mask))
        return self.reaction(y, train=train, mask=mask)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ¹), [*grid, C]."""
        return symbol(self.get_variable("params", "stencil"), grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """σ(a ⊙ (K_dw y) + b), then the reaction."""
        (stencil,), (a, b) = constants(self, "stencil"), self.normalize.scale_and_shift()
        return ops.Depthwise(a * stencil, b), ops.Relu(), *self.reaction.operations(grid)


class _ReactionDiffusion(nn.Module):
    """The explicit step of Eq. (8) with any K, and what the reaction-diffusion steps share.

    K_dw has θ as its weights, "stencil". K_circ has φ = θ·√C, "shared_stencil", because C pairs of channels share each
    weight: an optimiser's step in θ would change λ by an amount that grows with C, and one step of Adam at rate 0.01
    would exceed the explicit limit. A step in φ does not grow.
    """

    h: float = 1.0
    kernel_size: int = 3
    _circulant: ClassVar[bool] = False

    def setup(self) -> None:
        """The reaction."""
        self.reaction = Reaction()

    @nn.nowrap  # Flax would report the result of a wrapped method among the intermediate features
    def _stencil(self, y: jax.Array | None = None) -> jax.Array:
        """θ [*window, C]: for features y, or of a step that is bound to its variables."""
        name = "shared_stencil" if self._circulant else "stencil"
        if y is None:
            weights: jax.Array = self.get_variable("params", name)
        else:
            weights = self.param(name, self._stencil_init(), (*_window(self, y), y.shape[-1]))
        return weights / math.sqrt(weights.shape[-1]) if self._circulant else weights

    @nn.nowrap
    def _stencil_init(self) -> Initializer:
        """Returns the initialiser of "stencil" or "shared_stencil"."""
        return (initializers.stable_shared_stencil if self._circulant else initializers.stable_stencil)(self.h)

    @nn.nowrap
    def _step(self, stencil: jax.Array, reaction: Map, y: jax.Array) -> jax.Array:
        """y + h (-KᵀK y + r(y))."""
        diffusion = circulant_diffusion if self._circulant else depthwise_diffusion
        return forward_euler(reaction_diffusion(partial(diffusion, stencil), reaction), y, self.h)

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        return self._step(self._stencil(y), partial(self.reaction, train=train, mask=mask), y)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K(θ), [*grid, C]; of K_circ the last axis is the frequency along the channels."""
        return (circulant_symbol if self._circulant else symbol)(self._stencil(), grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """(I - hKᵀK) y + σ(h r(y)), with r(y) = a ⊙ (M y) + b."""
        diffusion = ops.Filter(np.asarray(self._stencil()), self.h, "forward_euler", tuple(grid), self._circulant)
        return (ops.Sum(((diffusion,), self.reaction.operations(grid, self.h))),)


class ExplicitRDStep(_ReactionDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_dw: Eq. (9). Linearly stable while h·max|λ|² ≤ 2.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """


class _ImplicitReactionDiffusion(_ReactionDiffusion):
    """The implicit step of Eq. (11) with any K."""

    reach: float = 0.0
    boundary: ResolventBoundary = "periodic"

    @nn.nowrap
    def _stencil_init(self) -> Initializer:
        return initializers.reaching_stencil(self.h, self.reach) if self.reach else super()._stencil_init()

    @nn.nowrap
    def _step(self, stencil: jax.Array, reaction: Map, y: jax.Array) -> jax.Array:
        """(I + hKᵀK)⁻¹ (y + h r(y))."""
        resolvent = circulant_resolvent if self._circulant else depthwise_resolvent
        return imex_euler(partial(resolvent, stencil, boundary=self.boundary), reaction, y, self.h)

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K(θ), [*grid, C]; of K_circ the last axis is the frequency along the channels.

        If the boundary is "symmetric", on the mirrored grid of twice as many points along each axis, [*(2 grid), C].
        """
        return super().symbol([2 * n for n in grid] if self.boundary == "symmetric" else grid)

    def operations(self, grid: Sequence[int]) -> tuple[ops.Operation, ...]:
        """(I + hKᵀK)⁻¹ (y + σ(h r(y))), with r(y) = a ⊙ (M y) + b."""
        stencil, circulant = np.asarray(self._stencil()), self._circulant
        diffusion = ops.Filter(stencil, self.h, "imex_euler", tuple(grid), circulant, self.boundary)
        return ops.Sum(((), self.reaction.operations(grid, self.h))), diffusion


class ImplicitRDStep(_ImplicitReactionDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_dw: Eq. (11). Its linear part is stable for every h and θ.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
        reach: radius of the Green's function before training, in pixels, by `initializers.reaching_stencil`; 0 for
            `initializers.stable_stencil`, whose radius is mostly below one pixel.
        boundary: of the diffusion, "periodic" as in the paper, or "symmetric"; see `lowcost.depthwise_resolvent`.
    """


class CirculantRDStep(_ReactionDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_circ: Eqs. (9) and (12). Linearly stable while h·max|λ|² ≤ 2.

    The parameter "shared_stencil" is φ = θ·√C for the stencil θ of K_circ, so that one learning rate suits all weights
    of a network.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
    """

    _circulant = True


class ImplicitCirculantRDStep(_ImplicitReactionDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_circ: Eq. (11) with the operator of Eq. (12); not in the paper.

    Its linear part is stable for every h and θ, and couples all pixels and all channels in one step. The parameter
    "shared_stencil" is φ = θ·√C for the stencil θ of K_circ, as in `CirculantRDStep`.

    Attributes:
        h, kernel_size, reach, boundary: as in `ImplicitRDStep`.
    """

    _circulant = True


def _mirrored(stencil, channel_axes=1):
    """θ₋ⱼ, in NumPy; an even axis is first extended by a zero, so that its centre, index m // 2, is in the middle."""
    dims = stencil.ndim - channel_axes
    odd = np.pad(stencil, [*((0, 1 - m % 2) for m in stencil.shape[:dims]), *[(0, 0)] * channel_axes])
    return np.flip(odd, tuple(range(dims)))


def _window(step, y):
    return (step.kernel_size,) * (y.ndim - 2)


def constants(module: nn.Module, *names: str) -> list[np.ndarray]:
    """The parameters of a bound module by their names, as float64 arrays of NumPy."""
    return [np.asarray(module.get_variable("params", name), np.float64) for name in names]
