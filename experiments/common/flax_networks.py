"""Builds networks for comparison from Flax's own layers: a ResNet, a MobileNet and a U-Net."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResNet(nn.Module):
    """y + K₂ σ(N(K₁ y)), fully coupled, by `flax.linen.Conv` and `BatchNorm`, with circular padding.

    Attributes:
        channels: of each block.
        num_classes: outputs of the classifier.
        dtype: of the features.
    """

    channels: Sequence[int]
    num_classes: int
    dtype: jax.typing.DTypeLike = "float32"

    def step(self, y: jax.Array, norm: partial, conv: partial) -> jax.Array:
        """One step: [B, H, W, C] → the same shape."""
        c = y.shape[-1]
        return y + conv(c)(nn.relu(norm()(conv(c)(y))))

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool = False) -> jax.Array:
        """Images [B, H, W, C_in] → logits [B, num_classes]."""
        norm = partial(nn.BatchNorm, not train, momentum=0.9, use_scale=False, use_bias=False, dtype=self.dtype)
        conv = partial(nn.Conv, kernel_size=(3, 3), padding="CIRCULAR", use_bias=False, dtype=self.dtype)
        y = nn.relu(norm()(conv(self.channels[0], kernel_size=(5, 5))(y)))
        for i, c in enumerate(self.channels):
            if i:
                y = nn.avg_pool(y, (2, 2), (2, 2))
            for _ in range(4):  # steps per block, as in Section 4
                y = self.step(y, norm, conv)
            y = norm()(conv(2 * c, kernel_size=(1, 1))(y))
        return nn.Dense(self.num_classes)(y.mean((1, 2)))


class MobileNet(ResNet):
    """σ(N(M σ(N(K_dw y)))), Eq. (13), by Flax's grouped convolution."""

    def step(self, y: jax.Array, norm: partial, conv: partial) -> jax.Array:
        """One step: [B, H, W, C] → the same shape."""
        c = y.shape[-1]
        y = nn.relu(norm()(conv(c, feature_group_count=c)(y)))
        return nn.relu(norm()(conv(c, kernel_size=(1, 1))(y)))


class UNet(nn.Module):
    """Levels of two convolutions, each level on half the grid of the level above, whose features are concatenated.

    A convolution is followed by `BatchNorm` and ReLU, and pads with zeros. Maximum pooling leads down, nearest
    upsampling leads up.

    Attributes:
        channels: of each level, from the finest to the coarsest.
        num_classes: outputs for each point.
    """

    channels: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, *grid, C_in] → logits [B, *grid, num_classes]; ValueError unless 2^(levels - 1) divides the grid axes."""
        axes, factor = range(1, y.ndim - 1), 2 ** (len(self.channels) - 1)
        if any(y.shape[axis] % factor for axis in axes):
            expected = f"images must be [B, *grid, C] with grid axes that are multiples of {factor}"
            raise ValueError(f"{expected}, got shape {list(y.shape)}; crop or pad them")

        def level(y: jax.Array, channels: int) -> jax.Array:
            for _ in range(2):
                y = nn.Conv(channels, (3,) * len(axes), use_bias=False)(y)
                y = nn.relu(nn.BatchNorm(not train, momentum=0.9)(y))
            return y

        skips = []
        for channels in self.channels[:-1]:
            skips.append(level(y, channels))
            y = nn.max_pool(skips[-1], (2,) * len(axes), (2,) * len(axes))
        y = level(y, self.channels[-1])
        for channels, skip in reversed([*zip(self.channels, skips, strict=False)]):
            for axis in axes:
                y = jnp.repeat(y, 2, axis)
            y = level(jnp.concatenate([skip, y], axis=-1), channels)
        return nn.Dense(self.num_classes)(y)
