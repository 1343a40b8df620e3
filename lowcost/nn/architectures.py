"""Builds the networks of Section 4 and others by the names of their architectures: a step and its options."""

import numbers
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowcost.arguments import ResolventBoundary, check_choice, check_time_step
from lowcost.nn import reaction_diffusion, steps
from lowcost.nn.initializers import Initializer, opening_normal, reaching_stencil
from lowcost.nn.networks import Head, Network, Width, block_channels, check_head
from lowcost.scaling import Moments, are_moments

Architecture = Literal[
    "resnet", "mobilenet", "linear_mix", "explicit_rd", "implicit_rd", "circulant_rd", "implicit_circulant_rd"
]
"""The names of the architectures in flags and files; all but the last are rows of Table 2."""

ARCHITECTURES: dict[Architecture, type[nn.Module]] = {
    "resnet": steps.ResNetStep,
    "mobilenet": steps.MobileNetStep,
    "linear_mix": steps.LinearMixStep,
    "explicit_rd": reaction_diffusion.ExplicitRDStep,
    "implicit_rd": reaction_diffusion.ImplicitRDStep,
    "circulant_rd": reaction_diffusion.CirculantRDStep,
    "implicit_circulant_rd": reaction_diffusion.ImplicitCirculantRDStep,
}
"""The step of each architecture."""


def network(
    architecture: Architecture,
    width: Width | Sequence[int],
    num_classes: int,
    *,
    h: float = 1.0,
    reach: float = 0.0,
    kernel_size: int = 3,
    boundary: ResolventBoundary = "periodic",
    zero_mean: bool = False,
    fixed_scale: bool = False,
    steps_per_block: int = 4,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    opening_init: Initializer = opening_normal,
    moments: Moments | None = None,
    masked: bool = False,
    head: Head = "class",
    decoder: bool = False,
) -> Network:
    """Returns the network of Section 4: a Flax module with the map images → logits.

    Args:
        architecture: one of `ARCHITECTURES`: "resnet", "mobilenet", "linear_mix", "explicit_rd", "implicit_rd",
            "circulant_rd", or "implicit_circulant_rd", which is not in the paper.
        width: "A", "B", "C", or a sequence with the channels of each block, e.g. (8, 16, 32). They must double from
            block to block.
        num_classes: number of outputs of the classifier.
        h: time step; "mobilenet" has none, Eq. (13).
        reach: radius in pixels over which an implicit step couples its grid before training, that of its Green's
            function (`initializers.reaching_stencil`); 0 for the stencils of explicit steps, whose radius is mostly
            below one. Only "implicit_rd" and "implicit_circulant_rd" have it.
        kernel_size: number of points of the stencils per axis.
        boundary: of the diffusion in implicit steps, "periodic" as in the paper, or "symmetric", with which it does not
            couple opposite edges (`lowcost.depthwise_resolvent`). All other stencils of the network stay periodic.
        zero_mean: whether implicit steps subtract from each stencil its average over the window, at each evaluation, so
            that their diffusion keeps the average of each channel.
        fixed_scale: whether normalisations subtract the mean of each channel without dividing by its deviation. Then
            Lipschitz bounds depend on the weights alone, and `lowcost.nn.norm_budget` can keep them in training.
        steps_per_block: number of steps in each block.
        dtype: of the features. With `jnp.bfloat16` they take half the memory; weights, statistics, the sums inside
            the operators, and logits stay float32.
        remat: store only each block's input for the backward pass and recompute the rest (`jax.checkpoint`), about a
            third more operations. It is meant for accelerators: XLA's CPU scheduler recomputes too early and saves
            little memory.
        opening_init: initialiser of the stencil of the first layer (the opening), [*window, C_in, features], e.g.
            `initializers.patch_whitening(images)`.
        moments: (means, deviations) of the channels of the training images. The network then first standardises its
            images, (image - mean) / deviation; for images that are not scaled to [0, 1].
        masked: whether the last channel of the images is a mask, for signals of several lengths: above 0 on valid
            points and 0 on padding. Statistics and averages are then over valid points, and moments have no entries for
            the mask. The network appends padding, so that the ends of the longest signal do not meet on the periodic
            grid. Outputs do not depend on the amount of padding. The implicit steps are an exception: they reach every
            point of the padded grid.
        head: "class" for one vector of logits per image, or "pixels" for one per point (dense prediction). Without a
            decoder the network then has no poolings, and all blocks have the grid of the images; names and shapes of
            the weights are the same.
        decoder: whether a network with the head "pixels" keeps the poolings between its blocks, so that its steps cost
            less. For each pooling an expanding layer then returns to the grid before it, adds the features from there,
            and a block of steps follows (a U-Net).

    Returns:
        A Flax module, images [B, *grid, C_in] → logits [B, num_classes], or [B, *grid, num_classes] with the head
        "pixels". The images are in [0, 1] unless there are moments. The grid has one to three axes. Unless masked, each
        has at least max(5, (kernel_size - 1)·2^(blocks - 1) + 1) points: the opening's stencil has 5 points, and each
        block after the first has half of the points of the block before it, rounded up. With the head "pixels" and no
        decoder, each has at least max(5, kernel_size) points.

    Raises:
        TypeError: dtype is not real floating point.
        ValueError: unknown architecture, width, boundary or head, a count below one, h negative or given to
            "mobilenet", reach negative, reach, boundary or zero_mean for an architecture without implicit steps,
            a kernel_size of 1 with zero_mean or below 3 with reach, moments that are not finite, a deviation that is
            not above 0, a masked network with the head "pixels", or a decoder with the head "class" or with one block.

    Example:
        >>> net = network("implicit_rd", (8, 16), num_classes=10)
        >>> images = jnp.zeros((1, 16, 16, 3))
        >>> net.apply(net.init(jax.random.key(0), images), images).shape
        (1, 10)
    """
    check_choice("architecture", architecture, tuple(ARCHITECTURES))
    check_choice("head", head, get_args(Head))
    channels = block_channels(width)
    check_head(head, masked, decoder, channels)
    counts = _whole_numbers(num_classes=num_classes, kernel_size=kernel_size, steps_per_block=steps_per_block)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be real floating point, got {dtype}; use e.g. jnp.bfloat16")
    if getattr(h, "shape", None) == () and not isinstance(h, jax.core.Tracer):
        h = float(h)  # an array is not hashable, and networks are static arguments of `jax.jit`
    options = _step_options(architecture, h, reach=reach, boundary=boundary, zero_mean=zero_mean)
    if zero_mean and kernel_size == 1:
        raise ValueError("kernel_size must be at least 2 with zero_mean, got 1; a single weight minus its average is 0")
    if reach and kernel_size < 3:
        raise ValueError(f"kernel_size must be at least 3 with a reach above 0, got {kernel_size}; use e.g. 3")
    options |= {"fixed_scale": True} if fixed_scale else {}
    return Network(
        _Step(ARCHITECTURES[architecture], kernel_size=counts["kernel_size"], **options),
        channels,
        **counts,
        dtype=jnp.dtype(dtype),
        remat=remat,
        opening_init=opening_init,
        moments=_checked(moments),
        masked=bool(masked),
        head=head,
        decoder=decoder,
        fixed_scale=fixed_scale,
    )


def _step_options(architecture, h, *, reach, boundary, zero_mean):
    """Returns the options of a step that it has, or raises ValueError."""
    check_time_step(h)
    check_choice("boundary", boundary, get_args(ResolventBoundary))
    accepted = ARCHITECTURES[architecture].__dataclass_fields__
    if "h" not in accepted and h != 1:
        raise ValueError(f"h must be 1 for {architecture!r}, whose steps have no time step (Eq. 13), got {h}")
    if reach:
        reaching_stencil(h, reach)  # raises ValueError
    options = {"h": h} if "h" in accepted else {}
    implicit = (("reach", reach, 0), ("boundary", boundary, "periodic"), ("zero_mean", zero_mean, False))
    for name, value, default in implicit:
        if value != default:
            if name not in accepted:
                expected = f"{name} must be {default!r} for {architecture!r}, whose steps are not implicit (Eq. 11)"
                raise ValueError(f"{expected}, got {value!r}; use e.g. 'implicit_rd'")
            options[name] = value
    return options


def _checked(moments):
    """Returns the moments as tuples of floats, or raises ValueError."""
    if moments is None:
        return None
    if not are_moments(moments):
        expected = "moments must be finite means and as many finite deviations above 0, one per channel"
        raise ValueError(f"{expected}, got {moments}; a constant channel takes a deviation of 1")
    means, deviations = (tuple(map(float, numbers)) for numbers in moments)
    return means, deviations


def _whole_numbers(**counts):
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    return {name: int(count) for name, count in counts.items()}


class _Step(partial):
    """A step with options. Equal steps compare equal, so that equal networks are one static argument of `jax.jit`."""

    def __eq__(self, other):
        return type(other) is _Step and (self.func, self.keywords) == (other.func, other.keywords)

    def __hash__(self):
        return hash((self.func, frozenset(self.keywords.items())))
