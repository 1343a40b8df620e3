"""Holds the weights of reaction-diffusion steps, Eqs. (9) and (11), with K_dw or with K_circ, Eq. (12)."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import lecun_normal

from lowcost.arguments import ResolventBoundary
from lowcost.nn import initializers
from lowcost.nn import operations as ops
from lowcost.nn.initializers import Initializer
from lowcost.nn.limits import Limits, change_limit
from lowcost.nn.normalization import Normalized, constants
from lowcost.operators.circulant import circulant_diffusion, circulant_resolvent
from lowcost.operators.depthwise import depthwise_diffusion, depthwise_resolvent
from lowcost.operators.pointwise import pointwise
from lowcost.spectral import circulant_symbol, symbol
from lowcost.time_stepping import Map, forward_euler, imex_euler, reaction_diffusion


class Reaction(Normalized):
    """σ(N(M(θ) y)): the reaction of Eq. (8), between the channels of a pixel, with σ = ReLU.

    Attributes:
        fixed_scale: of N, as in `Normalize`.
    """

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        matrix = self.param("matrix", lecun_normal(), (y.shape[-1], y.shape[-1]), jnp.float32)
        return nn.relu(self.normalize(pointwise(matrix.astype(y.dtype), y), train=train, mask=mask))

    def operations(self, grid: Sequence[int], h: float = 1.0) -> tuple[ops.Operation, ...]:
        """h σ(N(M y)) = σ(h N(M y)), as h ≥ 0."""
        (matrix,), (a, b) = constants(self, "matrix"), self.normalize.scale_and_shift()
        return ops.Pointwise(h * a * matrix, h * b), ops.Relu()


class _ReactionDiffusion(nn.Module):
    """The explicit step of Eq. (8) with any K, and what the reaction-diffusion steps share.

    K_dw has θ as its weights, "stencil". K_circ has φ = θ·√C, "shared_stencil", because C pairs of channels share each
    weight: an optimiser's step in θ would change λ by an amount that grows with C, and one step of Adam at rate 0.01
    would exceed the explicit limit. A step in φ does not grow.
    """

    h: float = 1.0
    kernel_size: int = 3
    fixed_scale: bool = dataclasses.field(default=False, kw_only=True)
    _circulant: ClassVar[bool] = False

    def setup(self) -> None:
        """The reaction."""
        self.reaction = Reaction(fixed_scale=self.fixed_scale)

    @nn.nowrap  # Flax would report the result of a wrapped method among the intermediate features
    def _stencil(self, y: jax.Array | None = None) -> jax.Array:
        """θ [*window, C]: for features y, or of a step that is bound to its variables."""
        name = "shared_stencil" if self._circulant else "stencil"
        if y is None:
            weights: jax.Array = self.get_variable("params", name)
        else:
            weights = self.param(name, self._stencil_init(), (*(self.kernel_size,) * (y.ndim - 2), y.shape[-1]))
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

    def weight_limits(self, bound: float) -> Limits:
        """‖M‖ = (bound - 1) / h, and max|λ|² = 2 / h, up to which ‖I - hKᵀK‖ ≤ 1."""
        reaction = {"reaction": {"matrix": change_limit(bound, self.h)}}
        stencil = "shared_stencil" if self._circulant else "stencil"
        return {**reaction, stencil: math.sqrt(2 / self.h) if self.h else math.inf}


class ExplicitRDStep(_ReactionDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_dw: Eq. (9). Linearly stable while h·max|λ|² ≤ 2.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
        fixed_scale: of N, as in `Normalize`.
    """


class _ImplicitReactionDiffusion(_ReactionDiffusion):
    """The implicit step of Eq. (11) with any K."""

    reach: float = 0.0
    boundary: ResolventBoundary = "periodic"
    zero_mean: bool = False

    @nn.nowrap
    def _stencil(self, y: jax.Array | None = None) -> jax.Array:
        stencil = super()._stencil(y)
        axes = tuple(range(stencil.ndim - 1))
        return stencil - stencil.mean(axes, keepdims=True) if self.zero_mean else stencil

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

    def weight_limits(self, bound: float) -> Limits:
        """‖M‖ = (bound - 1) / h; ‖(I + hKᵀK)⁻¹‖ ≤ 1 for every stencil."""
        return {"reaction": {"matrix": change_limit(bound, self.h)}}


class ImplicitRDStep(_ImplicitReactionDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_dw: Eq. (11). Its linear part is stable for every h and θ.

    Attributes:
        h: time step.
        kernel_size: points of the stencil per axis.
        fixed_scale: of N, as in `Normalize`.
        reach: radius of the Green's function before training, in pixels, by `initializers.reaching_stencil`; 0 for
            `initializers.stable_stencil`, whose radius is mostly below one pixel.
        boundary: of the diffusion, "periodic" as in the paper, or "symmetric"; see `lowcost.depthwise_resolvent`.
        zero_mean: whether K has the stencil minus its average over the window, θ_j - Σ_i θ_i / |window|, at each
            evaluation. Then λ₀ = 0: the diffusion keeps the average of each channel over the grid.
    """


class CirculantRDStep(_ReactionDiffusion):
    """y + h (-KᵀK y + σ(N(M y))) with K = K_circ: Eqs. (9) and (12). Linearly stable while h·max|λ|² ≤ 2.

    The parameter "shared_stencil" is φ = θ·√C for the stencil θ of K_circ, so that one learning rate suits all weights
    of a network.

    Attributes:
        h, kernel_size, fixed_scale: as in `ExplicitRDStep`.
    """

    _circulant = True


class ImplicitCirculantRDStep(_ImplicitReactionDiffusion):
    """(I + h KᵀK)⁻¹ (y + h σ(N(M y))) with K = K_circ: Eq. (11) with the operator of Eq. (12); not in the paper.

    Its linear part is stable for every h and θ, and couples all pixels and all channels in one step. The parameter
    "shared_stencil" is φ = θ·√C for the stencil θ of K_circ, as in `CirculantRDStep`.

    Attributes:
        h, kernel_size, fixed_scale, reach, boundary, zero_mean: as in `ImplicitRDStep`.
    """

    _circulant = True
