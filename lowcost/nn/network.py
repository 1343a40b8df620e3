"""The base architecture of Section 4: an opening, blocks of steps, connecting layers, a linear classifier."""

from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import he_normal

from lowcost.arguments import check_choice
from lowcost.cost import block_channels
from lowcost.nn.initializers import stable_stencil
from lowcost.nn.steps import ExplicitRDStep, ImplicitRDStep, Normalize
from lowcost.operators.depthwise import depthwise
from lowcost.operators.fully_coupled import fully_coupled

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "explicit_rd": ExplicitRDStep,
    "implicit_rd": ImplicitRDStep,
}
"""The step of each architecture, by the name used in flags and files."""


def network(
    architecture: str,
    width: str | Sequence[int],
    num_classes: int,
    *,
    h: float = 1.0,
    kernel_size: int = 3,
    steps_per_block: int = 4,
) -> "Network":
    """The network of Section 4: `net.init(key, images)`, `net.apply(variables, images)` → logits.

    Args:
        architecture: "implicit_rd" or "explicit_rd".
        width: "A", "B", "C", or the channels of each block, each twice the one before.
        num_classes: outputs of the classifier.
        h: time step of the reaction-diffusion steps.
        kernel_size: points of their stencils per axis.
        steps_per_block: steps in each block.

    Returns:
        A Flax module, images [B, *grid, C_in] in [0, 1] → logits [B, num_classes]. Every axis of the grid must be
        divisible by 2^(blocks - 1), and no smaller than the stencil in the last block.

    Raises:
        ValueError: unknown architecture or width, or a count below one.
    """
    check_choice("architecture", architecture, tuple(ARCHITECTURES))
    channels = block_channels(width)
    for name, count in {
        "num_classes": num_classes,
        "kernel_size": kernel_size,
        "steps_per_block": steps_per_block,
    }.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    step = ARCHITECTURES[architecture]
    return Network(step, channels, num_classes, h, kernel_size, steps_per_block)


class Network(nn.Module):
    """Opening, blocks of steps with their connecting layers, classifier; use `network` to make one.

    Attributes:
        step: the step's module class.
        channels: channels of each block.
        num_classes, h, kernel_size, steps_per_block: as `network`.
    """

    step: Callable[..., nn.Module]
    channels: Sequence[int]
    num_classes: int
    h: float = 1.0
    kernel_size: int = 3
    steps_per_block: int = 4

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Images [B, *grid, C_in] in [0, 1] → logits [B, num_classes]."""
        grid = images.shape[1:-1]
        halvings = 2 ** (len(self.channels) - 1)
        if not grid or any(n % halvings for n in grid):
            raise ValueError(
                f"images must be [B, *grid, C] with every grid axis divisible by {halvings}, since the network of "
                f"{len(self.channels)} blocks halves it {len(self.channels) - 1} times; got shape {list(images.shape)}"
            )
        y = Opening(self.channels[0], name="opening")(images, train=train)
        for block, c in enumerate(self.channels):
            if block:
                y = Halving(name=f"block{block}_pooling")(y)
            chex.assert_shape(y, (None,) * (1 + len(grid)) + (c,))
            for j in range(self.steps_per_block):
                name = f"block{block + 1}_step{j + 1}"
                y = self.step(h=self.h, kernel_size=self.kernel_size, name=name)(y, train=train)
            y = Connecting(self.kernel_size, name=f"block{block + 1}_connecting")(y, train=train)
        return nn.Dense(self.num_classes, name="classifier")(Mean(name="pooling")(y))


class Opening(nn.Module):
    """σ(N(K(θ) y)) with a fully coupled 5x5 stencil: from the image's channels to the first block's.

    Attributes:
        features: channels of the first block.
        kernel_size: points of the stencil per axis.
    """

    features: int
    kernel_size: int = 5

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, features]."""
        window = (self.kernel_size,) * (y.ndim - 2)
        stencil = self.param("stencil", he_normal(), (*window, y.shape[-1], self.features))
        return nn.relu(Normalize(name="normalize")(fully_coupled(stencil, y), train=train))


class Connecting(nn.Module):
    """N([x; K_dw(θ) x]): twice the channels, Section 4.

    Attributes:
        kernel_size: points of the stencil per axis.
    """

    kernel_size: int = 3

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C] → [B, *grid, 2C]."""
        stencil = self.param("stencil", stable_stencil(), (*(self.kernel_size,) * (y.ndim - 2), y.shape[-1]))
        return Normalize(name="normalize")(jnp.concatenate([y, depthwise(stencil, y)], axis=-1), train=train)


class Halving(nn.Module):
    """The average of every 2 x 2 pixels: half the points per axis."""

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *(grid / 2), C]."""
        twos = (2,) * (y.ndim - 2)
        return nn.avg_pool(y, twos, twos)


class Mean(nn.Module):
    """The average of every channel over the grid: a single pixel."""

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, C]."""
        return jnp.mean(y, axis=range(1, y.ndim - 1))
