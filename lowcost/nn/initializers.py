"""Initial stencils for which every step starts stable; the paper does not state its own.

Where a normalisation follows an operator its size does not matter, since the normalisation divides it out. It matters
in the diffusion of the reaction-diffusion steps, which must not exceed the explicit limit h·max|λ|² ≤ 2, and in the
way back of Eq. (3), Kᵀ, which with a variance of 1 / fan-in adds h²/2 to the second moment of the features a step: the
signal grows about with the root of the depth.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import he_normal, variance_scaling
from numpy.typing import ArrayLike

Initializer = Callable[..., jax.Array]

opening_normal: Initializer = he_normal()
"""θ [*window, C_in, C_out] of K(θ), with variance 2 / fan-in."""

depthwise_normal: Initializer = variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(), out_axis=(), batch_axis=-1
)
"""θ [*window, C] of K_dw(θ), with variance 1 / |window|."""

circulant_normal: Initializer = variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=())
"""θ [*window, C] of K_circ(θ), with variance 1 / (|window| C): every weight is shared by C pairs of channels."""

# K_lm = K_dw + M: half of the variance from the neighbours, half from the other channels, however many those are.
linear_mix_normal: Initializer = variance_scaling(
    0.5, "fan_in", "truncated_normal", in_axis=(), out_axis=(), batch_axis=-1
)
"""θ¹ [*window, C] of K_lm(θ¹, θ²), with variance 1 / (2 |window|)."""

linear_mix_matrix_normal: Initializer = variance_scaling(0.5, "fan_in", "truncated_normal")
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

    Twelve MobileNet steps (13) after one another keep nothing of y beside them; with stencils of zero mean the images
    become alike to one another on the way, with these they do not.

    Args:
        key: of the draw.
        shape: of θ, [*window, C].
        dtype: of θ.
    """
    θ = stable_stencil()(key, shape, dtype)
    return θ.at[tuple(m // 2 for m in shape[:-1])].add(1)


def patch_whitening(images: ArrayLike) -> Initializer:
    """θ = ±v / √(μ + ε), (μ, v) the largest eigenpairs of the covariance of image patches: an opening layer's stencil.

    Each filter and its negative answer with variance 1, and two different filters without correlation, so that the
    layers behind start with what an optimiser would first have to find. After Jordan, 94% on CIFAR-10 in 3.29 seconds
    on a single GPU (2024). Filters beyond twice the numbers in a patch are drawn with `opening_normal`.

    Args:
        images: a sample of the training images, [N, *grid, C], in [0, 1]; periodic as everywhere.

    Returns:
        An initialiser (key, shape [*window, C, features], dtype) → θ, for an opening layer of these images.
    """
    y = np.asarray(images, np.float32)
    y = y - y.mean(tuple(range(y.ndim - 1)))
    *grid, channels = y.shape[1:]
    axes = tuple(range(1, 1 + len(grid)))
    spectrum = np.fft.fftn(y, axes=axes).reshape(len(y), -1, channels)
    spectral = (spectrum.conj().transpose(1, 2, 0) @ spectrum.transpose(1, 0, 2)) / (len(y) * math.prod(grid) ** 2)
    covariances = np.fft.ifftn(spectral.reshape(*grid, channels, channels), axes=tuple(range(len(grid)))).real
    covariances *= math.prod(grid)  # [d, a, b]: mean of y(x, a) y(x + d, b), all pixels of all images

    @cache
    def filters(window: tuple[int, ...]) -> np.ndarray:
        places = np.array(list(itertools.product(*map(range, window))))
        apart = (places - places[:, None]) % grid
        covariance = covariances[tuple(np.moveaxis(apart, -1, 0))].swapaxes(1, 2)  # of patches [place, channel]
        size = len(places) * channels
        values, vectors = np.linalg.eigh(covariance.reshape(size, size))
        whitened = (vectors / np.sqrt(np.maximum(values, 0) + 1e-3))[:, ::-1]
        return np.stack([whitened, -whitened], axis=-1).reshape(*window, channels, 2 * size)

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        *window, _, features = shape
        known = jnp.asarray(filters(tuple(window))[..., :features], dtype)
        return opening_normal(key, tuple(shape), dtype).at[..., : known.shape[-1]].set(known)

    return init


def _largest(h):
    """The largest |λ| with which a step of h starts; of an h that is traced too, as modules look at their weights."""
    return jnp.sqrt(2 / jnp.maximum(h, 1.0)) if isinstance(h, jax.Array) else math.sqrt(2 / max(h, 1.0))
