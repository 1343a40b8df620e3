"""The base architecture of Section 4: an opening, blocks of steps, connecting layers, a linear classifier."""

import itertools
import numbers
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from lowcost.arguments import check_choice, check_floating, check_time_step
from lowcost.cost import block_channels
from lowcost.nn import steps
from lowcost.nn.initializers import Initializer, opening_stencil, stable_stencil
from lowcost.nn.steps import Normalize
from lowcost.operators.depthwise import depthwise
from lowcost.operators.fully_coupled import fully_coupled
from lowcost.spectral import promote, symbol

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet": steps.ResNetStep,
    "mobilenet": steps.MobileNetStep,
    "linear_mix": steps.LinearMixStep,
    "explicit_rd": steps.ExplicitRDStep,
    "implicit_rd": steps.ImplicitRDStep,
    "circulant_rd": steps.CirculantRDStep,
    "implicit_circulant_rd": steps.ImplicitCirculantRDStep,
}
"""The step of each architecture, by the name used in flags and files; all but the last are rows of Table 2."""


def network(
    architecture: str,
    width: str | Sequence[int],
    num_classes: int,
    *,
    h: float = 1.0,
    kernel_size: int = 3,
    steps_per_block: int = 4,
    dtype: Any = jnp.float32,
    remat: bool = False,
    opening_init: Initializer = opening_stencil,
) -> "Network":
    """The network of Section 4: `net.init(key, images)`, `net.apply(variables, images)` → logits.

    Args:
        architecture: one of `ARCHITECTURES`: "resnet", "mobilenet", "linear_mix", "explicit_rd", "implicit_rd",
            "circulant_rd", or, beyond the paper, "implicit_circulant_rd".
        width: "A", "B", "C", or the channels of each block, each twice the one before.
        num_classes: outputs of the classifier.
        h: time step; "mobilenet" has none, Eq. (13).
        kernel_size: points of the stencils per axis.
        steps_per_block: steps in each block.
        dtype: of the features. With `jnp.bfloat16` they take half the memory; weights, statistics, the sums inside
            the operators, and logits stay float32.
        remat: keep for the way back only what goes into each block and compute the block again (`jax.checkpoint`): on
            network A a tenth of the bytes, for about a third more operations. For accelerators: XLA's CPU scheduler
            computes too early and gives most of the memory away.
        opening_init: of the opening's stencil [*window, C_in, features], e.g. `initializers.patch_whitening(images)`.

    Returns:
        A Flax module, images [B, *grid, C_in] in [0, 1] → logits [B, num_classes]. The grid has one to three axes,
        each divisible by 2^(blocks - 1), and no smaller than the opening's 5 points, nor than the stencil in the last
        block.

    Raises:
        TypeError: dtype is not real floating point.
        ValueError: unknown architecture or width, a count below one, h negative or given to "mobilenet".

    Example:
        >>> net = network("implicit_rd", (8, 16), num_classes=10)
        >>> images = jnp.zeros((1, 16, 16, 3))
        >>> net.apply(net.init(jax.random.key(0), images), images).shape
        (1, 10)
    """
    check_choice("architecture", architecture, tuple(ARCHITECTURES))
    channels = block_channels(width)
    counts = {"num_classes": num_classes, "kernel_size": kernel_size, "steps_per_block": steps_per_block}
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    num_classes, kernel_size, steps_per_block = map(int, counts.values())
    check_time_step(h)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be real floating point, e.g. jnp.bfloat16, got {dtype}")
    if architecture == "mobilenet" and h != 1:
        raise ValueError(f"h must be left at 1 for 'mobilenet', whose steps are no time steps (Eq. 13), got {h}")
    options = {"kernel_size": kernel_size} | ({} if architecture == "mobilenet" else {"h": h})
    step = _Step(ARCHITECTURES[architecture], **options)
    return Network(step, channels, num_classes, kernel_size, steps_per_block, jnp.dtype(dtype), remat, opening_init)


class _Step(partial):
    """A step with options, equal to another of the same: equal networks are one static argument of `jax.jit`."""

    def __eq__(self, other):
        return type(other) is _Step and (self.func, self.keywords) == (other.func, other.keywords)

    def __hash__(self):
        return hash((self.func, frozenset(self.keywords.items())))


class Network(nn.Module):
    """W · mean(blocks(opening(y))) + μ, Section 4: opening, blocks of steps, classifier; use `network` to make one.

    Attributes:
        step: (name) → the module of a step.
        channels: channels of each block.
        num_classes, kernel_size, steps_per_block, dtype, remat, opening_init: as `network`.
    """

    step: Callable[..., nn.Module]
    channels: Sequence[int]
    num_classes: int
    kernel_size: int = 3
    steps_per_block: int = 4
    dtype: Any = jnp.float32
    remat: bool = False
    opening_init: Initializer = opening_stencil

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Images [B, *grid, C_in] in [0, 1] → logits [B, num_classes]."""
        check_floating("images", images)
        grid = images.shape[1:-1]
        halvings = 2 ** (len(self.channels) - 1)
        if not grid or any(n % halvings for n in grid):
            raise ValueError(
                f"images must be [B, *grid, C] with every grid axis divisible by {halvings}, since the network of "
                f"{len(self.channels)} blocks halves it {len(self.channels) - 1} times; got shape {list(images.shape)}"
            )

        def block(net: Network, y: jax.Array, number: int) -> jax.Array:
            for j in range(net.steps_per_block):
                y = net.step(name=f"block{number}_step{j + 1}")(y, train=train)
            return Connecting(net.kernel_size, name=f"block{number}_connecting")(y, train=train)

        y = Opening(self.channels[0], stencil_init=self.opening_init, name="opening")(
            images.astype(self.dtype), train=train
        )
        run = nn.remat(block, static_argnums=2) if self.remat else block
        for i, c in enumerate(self.channels):
            if i:
                y = AveragePool(name=f"block{i}_pooling")(y)
            chex.assert_shape(y, (None,) * (1 + len(grid)) + (c,))
            y = run(self, y, i + 1)
        return nn.Dense(self.num_classes, name="classifier")(GlobalAveragePool(name="pooling")(y))


class Layer(NamedTuple):
    """A layer of a network with its weights, e.g. `layer.module.symbol(layer.grid)` for the steps.

    Attributes:
        name: of the module.
        module: bound to its weights and statistics.
        grid: points per axis of what goes into it.
    """

    name: str
    module: nn.Module
    grid: tuple[int, ...]


def bound_layers(net: Network, variables: Any, image_shape: Sequence[int]) -> list[Layer]:
    """net = layer_L ∘ … ∘ layer₁: the layers of Section 4's network in the order in which they are applied.

    Args:
        net: the network.
        variables: {"params", "batch_stats"}, trained or not.
        image_shape: [*grid, C].

    Returns:
        Each layer's name, its module bound to its weights, and the grid that goes into it.

    Raises:
        ValueError: the network cannot take images of this shape.
    """
    layers = []

    def note(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and len(module.path) == 1:
            own = {kind: tree[module.name] for kind, tree in variables.items() if module.name in tree}
            layers.append(Layer(module.name, module.clone(parent=None).bind(own), args[0].shape[1:-1]))
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(note):  # the layers are met by tracing the network, without computing it
        jax.eval_shape(lambda image: net.apply(variables, image, train=False), image)
    return layers


class Opening(nn.Module):
    """σ(N(K(θ) y)) with a fully coupled 5x5 stencil: from the image's channels to the first block's.

    Attributes:
        features: channels of the first block.
        kernel_size: points of the stencil per axis.
        stencil_init: of the stencil.
    """

    features: int
    kernel_size: int = 5
    stencil_init: Initializer = opening_stencil

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        """[B, *grid, C_in] → [B, *grid, features]."""
        window = (self.kernel_size,) * (y.ndim - 2)
        stencil = self.param("stencil", self.stencil_init, (*window, y.shape[-1], self.features), jnp.float32)
        return nn.relu(Normalize(name="normalize")(fully_coupled(stencil.astype(y.dtype), y), train=train))


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

    def symbol(self, grid: Sequence[int]) -> jax.Array:
        """λ of K_dw(θ), [*grid, C]."""
        return symbol(self.variables["params"]["stencil"], grid)


class AveragePool(nn.Module):
    """The average of every 2 x 2 pixels: half the points per axis."""

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, *(grid / 2), C]."""
        # Sums of strided slices fuse with what stands round them; a window reduction does not (XLA on a CPU).
        corners = itertools.product(*[(slice(0, None, 2), slice(1, None, 2))] * (y.ndim - 2))
        total = reduce(jnp.add, [promote(y[:, *corner]) for corner in corners])
        return (total / 2 ** (y.ndim - 2)).astype(y.dtype)


class GlobalAveragePool(nn.Module):
    """The average of every channel over the grid: a single pixel."""

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → [B, C], float32 at least."""
        return jnp.mean(promote(y), axis=range(1, y.ndim - 1))
