"""Builds the base architecture of Section 4: an opening, blocks of steps, connecting layers, a linear classifier."""

import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowcost.arguments import check_choice, check_floating, promote
from lowcost.nn.initializers import Initializer, opening_normal
from lowcost.nn.normalization import on_valid
from lowcost.nn.operations import AveragePool, GlobalAveragePool
from lowcost.nn.transitions import Classifier, Connecting, Expanding, Opening, Standardization
from lowcost.scaling import Moments

Masks = dict[str, jax.Array]
"""{"mask": where features are valid, [B, *grid, 1]}, or {} if they all are."""

Width = Literal["A", "B", "C"]
"""The names of the widths in Section 4."""

WIDTHS: dict[Width, tuple[int, ...]] = {"A": (32, 64, 128), "B": (48, 96, 192), "C": (32, 64, 128, 256)}
"""The channels of each block, by width."""

Head = Literal["class", "pixels"]
"""What a network classifies: the whole image, or each of its points."""


def check_head(head: Head, masked: bool, decoder: bool, channels: Sequence[int]) -> None:
    """Raises ValueError unless these options fit together."""
    if masked and head == "pixels":
        remedy = "resample the signals to one length, or choose the head 'class'"
        raise ValueError(f"masked must be False for the head 'pixels', got {masked}; {remedy}")
    if decoder and head != "pixels":
        raise ValueError(f"decoder must be False for the head {head!r}, got {decoder}; choose the head 'pixels'")
    if decoder and len(channels) < 2:
        got = f"got a width of {channels}"
        raise ValueError(f"decoder needs at least two blocks, with a pooling between them, {got}; add a block")


def block_channels(width: Width | Sequence[int]) -> tuple[int, ...]:
    """c_{i+1} = 2c_i, the channels of each block: those of a width "A", "B" or "C" of Section 4, or the given ones.

    Raises:
        ValueError: an unknown letter, or channels that do not double from block to block.
    """
    if isinstance(width, str):
        check_choice("width", width, tuple(WIDTHS))
        return WIDTHS[width]
    whole = all(isinstance(c, numbers.Integral) for c in width)
    if not whole or not len(width) or width[0] < 1 or any(b != 2 * a for a, b in itertools.pairwise(width)):
        reason = "because each connecting layer doubles the channels"
        raise ValueError(f"width must double from block to block, in whole numbers, {reason}, got {tuple(width)}")
    return tuple(map(int, width))


class Network(nn.Module):
    """W · mean(blocks(opening(y))) + μ, Section 4: opening, blocks of steps, classifier; use `network` to make one.

    With the head "pixels" there is no mean, and a decoder may follow the blocks.

    Attributes:
        step: (name) → the module of a step, e.g. the class of a step of your own (see `lowcost.nn.steps`).
        channels: channels of each block.
        num_classes, kernel_size, steps_per_block, dtype, remat, opening_init, moments, masked, head, decoder,
            fixed_scale: as in `network`; `fixed_scale` is that of all layers but the steps.
    """

    step: Callable[..., nn.Module]
    channels: Sequence[int]
    num_classes: int
    kernel_size: int = 3
    steps_per_block: int = 4
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    opening_init: Initializer = opening_normal
    moments: Moments | None = None
    masked: bool = False
    head: Head = "class"
    decoder: bool = False
    fixed_scale: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Images [B, *grid, C_in] → logits [B, num_classes], or [B, *grid, num_classes] with the head "pixels"."""
        channels = block_channels(self.channels)
        check_head(self.head, self.masked, self.decoder, channels)
        # Enough for the stencil of each block, and for the opening's.
        padding = max(2, self.kernel_size * 2 ** (len(channels) - 1)) if self.masked else 0
        _check_images(images, channels, self.kernel_size, padding, halves=self.pools)
        if padding:
            images = jnp.pad(images, [(0, 0), *[(0, padding)] * (images.ndim - 2), (0, 0)])
        y, mask = (images[..., :-1], images[..., -1:] > 0) if self.masked else (images, None)
        if self.moments is not None:
            y = Standardization(*self.moments, name="standardization")(y)

        last, fixed = len(channels), self.fixed_scale

        def take_steps(net: Network, y: jax.Array, name: str, masks: Masks) -> jax.Array:
            for j in range(net.steps_per_block):
                step = net.step(name=f"{name}_step{j + 1}")
                y = on_valid(step(y, train=train, **masks), masks.get("mask"))
            return y

        def encode(net: Network, y: jax.Array, number: int, masks: Masks) -> tuple[jax.Array, jax.Array]:
            skip = y = take_steps(net, y, f"block{number}", masks)
            if number < last or not net.decoder:
                pooling = (AveragePool() if number < last else GlobalAveragePool()) if net.pools else None
                connecting = Connecting(
                    pooling, net.kernel_size, net.decoder, name=f"block{number}_connecting", fixed_scale=fixed
                )
                y = connecting(y, train=train, **masks)
            return skip, y

        def decode(net: Network, y: jax.Array, number: int, skip: jax.Array) -> jax.Array:
            expanding = Expanding(skip.shape[1:-1], name=f"decoder{number}_expanding", fixed_scale=fixed)
            y = take_steps(net, skip + expanding(y, train=train), f"decoder{number}", {})
            if number > 1:
                return y
            return Connecting(None, net.kernel_size, name="decoder1_connecting", fixed_scale=fixed)(y, train=train)

        opening = Opening(channels[0], stencil_init=self.opening_init, name="opening", fixed_scale=fixed)
        y = opening(on_valid(y, mask).astype(self.dtype), train=train, mask=mask)
        if self.remat:
            encode = nn.remat(encode, static_argnums=2)
            decode = nn.remat(decode, static_argnums=2)
        skips = {}
        for number in range(1, last + 1):
            skips[number], y = encode(self, y, number, {} if mask is None else {"mask": mask})
            mask = None if mask is None else AveragePool()(promote(mask)) > 0
        for number in range(last - 1, 0, -1) if self.decoder else ():
            y = decode(self, y, number, skips[number])
        return Classifier(self.num_classes, name="classifier")(y)

    @property
    def pools(self) -> bool:
        """Whether there are poolings between the blocks."""
        return self.head == "class" or self.decoder


def least_points(kernel_size: int, blocks: int, *, halves: bool) -> int:
    """Returns the smallest number of points that each axis of the images may have.

    Args:
        kernel_size: points of the stencils per axis.
        blocks: number of blocks.
        halves: whether each block after the first has half the grid of the block before it, rounded up.
    """
    return max(Opening.kernel_size, (kernel_size - 1) * 2 ** (blocks - 1) + 1 if halves else kernel_size)


def check_network(net: Any) -> None:
    """Raises TypeError unless net is a `Network`."""
    if not isinstance(net, Network):
        remedy = "for other modules examine the operators, `lowcost.analysis`, and export by `jax.export`"
        raise TypeError(f"net must be a lowcost.nn.Network, got {type(net).__name__}; {remedy}")


def check_scaled(images: jax.Array) -> None:
    """Raises TypeError unless images are real floating point."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        remedy = "scale them to [0, 1] by lowcost.data.to_unit_range(images)"
        raise TypeError(f"images must be real floating point, got {images.dtype}; {remedy}")
    check_floating("images", images)


def _check_images(images, channels, kernel_size, padding, *, halves):
    """Raises TypeError or ValueError unless the stencils fit the grid in every block, and a mask has features."""
    check_scaled(images)
    if padding and images.shape[-1] < 2:
        expected = "images of a masked network must have the mask as last channel after at least one other"
        raise ValueError(f"{expected}, got shape {list(images.shape)}; append the mask to the channels")
    grid, blocks, got = images.shape[1:-1], len(channels), f"got shape {list(images.shape)}"
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"images must be [B, *grid, C] with one to three grid axes, {got}; reshape them")
    least = least_points(kernel_size, blocks, halves=halves)
    if min(grid) + padding >= least:
        return
    expected = f"images must be [B, *grid, C] with grid axes of at least {least} points"
    reason = f"because {blocks} blocks halve the grid {blocks - 1} times and their stencils have {kernel_size} points"
    if least in (Opening.kernel_size, kernel_size):
        reason = "the size of the opening's stencil" if least == Opening.kernel_size else "the size of the stencils"
    remedy = "use larger images"
    if min(grid) >= max(Opening.kernel_size, kernel_size):
        fitting = ((min(grid) - 1) // (kernel_size - 1)).bit_length()
        remedy = f"{remedy}, or fewer blocks, e.g. a width of {channels[:fitting]}"
    raise ValueError(f"{expected}, {reason}, {got}; {remedy}")
