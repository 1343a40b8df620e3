"""Samples initial stencils, which the paper does not state: every step starts stable, or with a stated reach.

If a normalisation follows an operator, the operator's size does not matter, because the normalisation divides it out.
It matters in two places. The diffusion of the reaction-diffusion steps must not exceed the explicit limit
h·max|λ|² ≤ 2. The Kᵀ of Eq. (3), with a variance of 1 / fan-in, adds h²/2 to the second moment of the features in each
step, so that the signal grows about with the square root of the depth.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import he_normal, variance_scaling
from numpy.typing import ArrayLike

Initializer = Callable[..., jax.Array]

NOISE = 0.5
"""Norm of the noise of `reaching_stencil`, relative to the first moment."""

opening_normal: Initializer = he_normal()
"""θ [*window, C_in, C_out] of K(θ), with variance 2 / fan-in."""

_scaled = partial(variance_scaling, mode="fan_in", distribution="truncated_normal")

depthwise_normal: Initializer = _scaled(1.0, in_axis=(), out_axis=(), batch_axis=-1)
"""θ [*window, C] of K_dw(θ), with variance 1 / |window|."""

circulant_normal: Initializer = _scaled(1.0, in_axis=-1, out_axis=())
"""θ [*window, C] of K_circ(θ), with variance 1 / (|window| C), because C pairs of channels share each weight."""

# K_lm = K_dw + M: half of the variance comes from the neighbours, half from the channels, whatever their number.
linear_mix_normal: Initializer = _scaled(0.5, in_axis=(), out_axis=(), batch_axis=-1)
"""θ¹ [*window, C] of K_lm(θ¹, θ²), with variance 1 / (2 |window|)."""

linear_mix_matrix_normal: Initializer = _scaled(0.5)
"""θ² [C, C] of K_lm(θ¹, θ²), with variance 1 / 2C."""


def stable_stencil(h: float = 1.0) -> Initializer:
    """θ ~ U(-a, a) with a = √(2 / max(h, 1)) / |window|, which guarantees h·max|λ|² ≤ 2.

    |λ_k| ≤ Σ_j |θ_j| ≤ a·|window| = √(2 / max(h, 1)). So for every sample and grid the explicit step (9) starts within
    its limit, and the implicit step (11) damps no mode by more than a factor of 3.

    Args:
        h: the time step for which the stencil is used.

    Returns:
        An initialiser (key, shape [*window, C], dtype) → θ.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        a = _largest(h) / math.prod(shape[:-1])
        return jax.random.uniform(key, tuple(shape), dtype, -a, a)

    return init


def stable_shared_stencil(h: float = 1.0) -> Initializer:
    """φ for θ = φ / √C, a circulant stencil: a sample of `stable_stencil`, scaled down if needed for h·max|λ|² ≤ 2.

    λ is a sum of |window|·C weights, and the factor √C gives it the mean square of `stable_stencil`'s λ. The bound Σ|θ|
    of the sum is larger by another √C: stencils that obey it hardly diffuse. Instead
    |λ_{k,q}| ≤ Σ_j |Σ_p θ_{j,p} exp(2πi q·p / C)| bounds λ on every grid, and the few samples beyond the limit are
    scaled down.

    Args, Returns: as in `stable_stencil`.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        φ = stable_stencil(h)(key, shape, dtype)
        along_channels = jnp.abs(jnp.fft.fft(φ / math.sqrt(shape[-1]), axis=-1))
        bound = jnp.max(jnp.sum(along_channels, axis=range(len(shape) - 1)))
        return φ * jnp.minimum(1.0, _largest(h) / bound).astype(dtype)

    return init


def reaching_stencil(h: float, reach: float) -> Initializer:
    """θ with Σ_j θ_j = 0 and |Σ_j j θ_j| = reach / √(2h): the implicit step (11) starts with this reach, in pixels.

    With m = Σ_j j θ_j, λ_k = i k·m + O(|k|²). The Green's function 1 / (1 + h|λ|²) = 1 - h (k·m)² + O(|k|⁴) has the sum
    1 and on an unbounded grid the root-mean-square radius √(2h)·|m|, see `lowcost.analysis.green_radius`. Each channel
    diffuses along a direction of its own, sampled at random. Noise without mean and first moment makes it diffuse in
    the other directions too. h·max|λ|² is then about 0.4 to 3.5 times reach²; the explicit limit is 2.

    For a circulant stencil φ = θ·√C, the radius is the root mean square over the frequencies along the channels.

    Args:
        h: the time step for which the stencil is used, h > 0.
        reach: radius of the Green's function, in pixels, above 0. On a grid of n points, a reach of n / 4 couples
            nearly all pixels.

    Returns:
        An initialiser (key, shape [*window, C], dtype) → θ.

    Raises:
        ValueError: h or reach is not finite or not above 0; by the initialiser, for a window with fewer than 3 points.
    """
    for name, value in (("h", h), ("reach", reach)):
        if isinstance(value, numbers.Real) and not (math.isfinite(value) and value > 0):  # an array may be traced
            raise ValueError(f"{name} must be finite and above 0, got {value}; e.g. h=1.0, reach=4.0")

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        *window, channels = shape
        if min(window, default=0) < 3:
            expected = "stencil must have at least 3 points per axis for a reach above 0"
            raise ValueError(f"{expected}, got shape {list(shape)}; use a kernel_size of 3 or more")
        j = np.indices(window).reshape(len(window), -1).T - np.array(window) // 2  # [points, axes]
        units = np.eye(len(window))
        differences = np.stack([((j == e).all(1) - 1.0 * (j == -e).all(1)) / 2 for e in units], axis=-1)
        size = np.exp(-(j**2).sum(1, keepdims=True))  # of the noise: large far weights would change the radius
        key_m, key_noise = jax.random.split(key)
        m = jax.random.normal(key_m, (len(window), channels))
        m = m / jnp.linalg.norm(m, axis=0, keepdims=True)
        noise = size * jax.random.normal(key_noise, (len(j), channels))
        noise = NOISE / np.linalg.norm(size) * (noise - size / size.sum() * noise.sum(0, keepdims=True))
        θ = noise + differences @ (m - j.T @ noise)
        return (reach / (2 * h) ** 0.5 * θ).reshape(shape).astype(dtype)

    return init


def near_identity(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """θ = δ + a sample of `stable_stencil`: K_dw(θ) y is y plus a small contribution of its neighbours.

    A MobileNet step (13) does not pass y on. With stencils of zero mean the features of different images become alike
    over twelve such steps; with these they do not.

    Args:
        key: of the sample.
        shape: of θ, [*window, C].
        dtype: of θ.
    """
    θ = stable_stencil()(key, shape, dtype)
    return θ.at[tuple(m // 2 for m in shape[:-1])].add(1)


def patch_whitening(images: ArrayLike) -> Initializer:
    """θ = ±v / √(μ + ε), (μ, v) the largest eigenpairs of the covariance of image patches: an opening layer's stencil.

    Each filter responds with variance 1, and the responses of two different filters are uncorrelated, except that the
    second half of each pair ±v is the negative of the first. Training then starts with features that an optimiser would
    first have to find. After Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU (2024). A patch of p numbers has
    2p such filters; `opening_normal` samples any further ones.

    Args:
        images: a sample of the training images, [N, *grid, C], as they reach the opening layer: in [0, 1] or
            standardised, on the paper's periodic grid.

    Returns:
        An initialiser (key, shape [*window, C, features], dtype) → θ, for an opening layer of these images.

    Raises:
        ValueError: by the initialiser, if the layer's input has another number of channels.
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
        offsets = (places - places[:, None]) % grid
        covariance = covariances[tuple(np.moveaxis(offsets, -1, 0))].swapaxes(1, 2)  # of patches [place, channel]
        size = len(places) * channels
        values, vectors = np.linalg.eigh(covariance.reshape(size, size))
        whitened = (vectors / np.sqrt(np.maximum(values, 0) + 1e-3))[:, ::-1]
        return np.stack([whitened, -whitened], axis=-1).reshape(*window, channels, 2 * size)

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        *window, channels_in, features = shape
        if channels_in != channels:
            expected = f"images must have the {channels_in} channels of the layer's input"
            raise ValueError(f"{expected}, got {channels}; pass the images that the layer takes")
        whitening = jnp.asarray(filters(tuple(window))[..., :features], dtype)
        return opening_normal(key, tuple(shape), dtype).at[..., : whitening.shape[-1]].set(whitening)

    return init


def _largest(h):
    """The largest |λ| with which a step of h may start; h is traced if `jax.jit` traces the module."""
    return jnp.sqrt(2 / jnp.maximum(h, 1.0)) if isinstance(h, jax.Array) else math.sqrt(2 / max(h, 1.0))
