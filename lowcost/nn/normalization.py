"""Normalises features by the statistics of the batch, the only place where images meet. Masks exclude padding."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import promote

EPSILON = 1e-5
"""Added to a variance before its square root is taken."""

MOMENTUM = 0.9
"""The share of the running statistics that a training step keeps."""


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

    Attributes:
        fixed_scale: N y = y - μ. Then the weights alone determine Lipschitz bounds, see `lowcost.nn.norm_budget`.
    """

    fixed_scale: bool = False

    def __call__(self, y: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """[B, *grid, C] → the same shape; valid points have mean 0 and variance 1 per channel, the others are 0.

        With a fixed scale the variance is that of y.
        """
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
        running = [self.variable("batch_stats", "mean", jnp.zeros, z.shape[-1], jnp.float32)]
        if not self.fixed_scale:
            running.append(self.variable("batch_stats", "var", jnp.ones, z.shape[-1], jnp.float32))
        now = statistics()[: len(running)] if train else [average.value for average in running]
        if train and not self.is_initializing():
            for average, new in zip(running, now, strict=True):
                average.value += ((1 - MOMENTUM) * (new - average.value)).astype(average.value.dtype)
        mean, a = now[0], jnp.ones_like(now[0]) if self.fixed_scale else jax.lax.rsqrt(now[1] + EPSILON)
        scale, shift = (jnp.expand_dims(x, range(z.ndim - 1)) for x in (a, mean * a))
        return (promote(z) * scale - shift).astype(z.dtype)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b of N y = a ⊙ y + b at inference, each [C], float64."""
        names = ("mean",) if self.fixed_scale else ("mean", "var")
        mean, *var = (np.asarray(self.get_variable("batch_stats", name), np.float64) for name in names)
        a = 1 / np.sqrt(var[0] + EPSILON) if var else np.ones_like(mean)
        return a, -mean * a


class Normalized(nn.Module, kw_only=True):
    """A module with one normalisation N.

    Attributes:
        fixed_scale: as in `Normalize`.
    """

    fixed_scale: bool = False

    def setup(self) -> None:
        """N."""
        self.normalize = Normalize(self.fixed_scale)


def constants(module: nn.Module, *names: str) -> list[np.ndarray]:
    """The parameters of a bound module by their names, as float64 arrays of NumPy."""
    return [np.asarray(module.get_variable("params", name), np.float64) for name in names]
