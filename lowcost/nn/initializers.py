"""Initial stencils for which every step starts stable; the paper does not state its own.

Where a normalisation follows an operator its size does not matter, since the normalisation divides it out. It matters
in the diffusion of the reaction-diffusion steps, which must not exceed the explicit limit h·max|λ|² ≤ 2, and in the
way back of Eq. (3), Kᵀ, which with a variance of 1 / fan-in adds h²/2 to the second moment of the features a step: the
signal grows with the root of the depth and no faster.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

Initializer = Callable[..., jax.Array]

depthwise_stencil: Initializer = variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(), out_axis=(), batch_axis=-1
)
"""θ [*window, C] of K_dw(θ), with variance 1 / |window|."""

circulant_stencil: Initializer = variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=())
"""θ [*window, C] of K_circ(θ), with variance 1 / (|window| C): every weight is shared by C pairs of channels."""

# K_lm = K_dw + M: half of the variance from the neighbours, half from the other channels, however many those are.
linear_mix_stencil: Initializer = variance_scaling(
    0.5, "fan_in", "truncated_normal", in_axis=(), out_axis=(), batch_axis=-1
)
"""θ¹ [*window, C] of K_lm(θ¹, θ²), with variance 1 / (2 |window|)."""

linear_mix_matrix: Initializer = variance_scaling(0.5, "fan_in", "truncated_normal")
"""θ² [C, C] of K_lm(θ¹, θ²), with variance 1 / 2C."""


def stable_stencil(h: float = 1.0) -> Initializer:
    """θ ~ U(-a, a) with a = √(2 / max(h, 1)) / |window|, so that h·max|λ|² ≤ 2 for certain.

    |λ_k| ≤ Σ_j |θ_j| ≤ a·|window| = √(2 / max(h, 1)): the explicit step (9) starts within its limit, and the
    implicit one (11) damps no mode by more than a factor of 3, whatever the draw and the grid.

    Args:
        h: the time step the stencil is meant for.

    Returns:
        An initialiser (key, shape [*window, C], dtype) → θ.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        a = _largest(h) / math.prod(shape[:-1])
        return jax.random.uniform(key, tuple(shape), dtype, -a, a)

    return init


def stable_shared_stencil(h: float = 1.0) -> Initializer:
    """φ for θ = φ / √C, a circulant stencil: as `stable_stencil`, made smaller where needed so that h·max|λ|² ≤ 2.

    Each weight is shared by C pairs of channels: λ is a sum of |window|·C of them, and √C makes its mean square that
    of `stable_stencil`. Bounding the sum by Σ|θ| would cost another √C and leave no diffusion to speak of; instead
    |λ_{k,q}| ≤ Σ_j |Σ_p θ_{j,p} exp(2πi q·p / C)| bounds it on every grid, and the few draws beyond are scaled down.

    Args, Returns: as `stable_stencil`.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        φ = stable_stencil(h)(key, shape, dtype)
        along_channels = jnp.abs(jnp.fft.fft(φ / math.sqrt(shape[-1]), axis=-1))
        bound = jnp.max(jnp.sum(along_channels, axis=range(len(shape) - 1)))
        return φ * jnp.minimum(1.0, _largest(h) / bound).astype(dtype)

    return init


def near_identity(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """θ = δ + a draw of `stable_stencil`: K_dw(θ) y is y and a little of its neighbours.

    Twelve MobileNet steps after one another keep nothing of y beside them; with stencils of zero mean the images become
    alike to one another on the way, with these they do not.
    """
    θ = stable_stencil()(key, shape, dtype)
    return θ.at[tuple(m // 2 for m in shape[:-1])].add(1)


def _largest(h):
    """The largest |λ| with which a step of h starts."""
    return math.sqrt(2 / max(h, 1.0))
