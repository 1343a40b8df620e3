"""The networks that most would write: Flax's own layers, with the widths, depth and places of ours."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax


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
