"""Initial stencils for which every step starts stable; the paper does not state its own.

The size of M(θ) does not matter, since the normalisation behind it divides it out. So only the stencils decide what a
step does to the signal at the start.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def stable_stencil(h: float = 1.0) -> Callable[..., jax.Array]:
    """θ ~ U(-a, a) with a = √(2 / max(h, 1)) / |window|, so that h·max|λ|² ≤ 2 for certain.

    |λ_k| ≤ Σ_j |θ_j| ≤ a·|window| = √(2 / max(h, 1)): the explicit step (9) starts within its limit, and the
    implicit one (11) damps no mode by more than a factor of 3, whatever the draw.

    Args:
        h: the time step the stencil is meant for.

    Returns:
        An initialiser (key, shape [*window, C], dtype) → θ.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        a = math.sqrt(2 / max(h, 1.0)) / math.prod(shape[:-1])
        return jax.random.uniform(key, tuple(shape), dtype, -a, a)

    return init
