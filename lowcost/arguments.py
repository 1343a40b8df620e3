"""What the operators accept, and what they say otherwise: the argument, what was expected, what came, what to do."""

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

BOUNDARIES = ("periodic", "zeros", "reflect")


def check_floating(name: str, x: jax.Array) -> None:
    """TypeError unless x is an array of real floating point numbers."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{name} must be real floating point, got {got}; cast it, e.g. {name}.astype(jnp.float32)")


def check_stencil(stencil: jax.Array, grid: Sequence[int], *, channel_axes: int = 1) -> None:
    """The stencil [*window, *channels] is real and fits the grid, axis by axis."""
    check_floating("stencil", stencil)
    window = stencil.shape[: stencil.ndim - channel_axes]
    if not window or len(window) != len(grid):
        raise ValueError(
            f"stencil must have one axis per grid axis and then its channels, got shape {list(stencil.shape)} "
            f"for the grid {list(grid)}"
        )
    if any(m < 1 or m > n for m, n in zip(window, grid, strict=True)):
        raise ValueError(
            f"stencil {_by(window)} must lie between 1 and the grid {_by(grid)} on every axis; "
            "use a smaller stencil or a larger grid"
        )


def check_features(
    name: str, y: jax.Array, stencil: jax.Array, *, channel_axes: int = 1, channel_axis: int = -1
) -> None:
    """The features y are [..., *grid, C] for a grid that holds the stencil, C being the stencil's axis channel_axis."""
    check_floating("stencil", stencil)
    check_floating(name, y)
    dims = stencil.ndim - channel_axes
    if not 1 <= dims <= 3:
        raise ValueError(
            f"stencil must have one to three window axes before its channels, got shape {list(stencil.shape)}"
        )
    if y.ndim < dims + 1:
        raise ValueError(
            f"{name} must be [..., *grid, C] with {dims} grid axes as the stencil has, got shape {list(y.shape)}"
        )
    check_channels(name, y, "stencil", stencil, stencil.shape[channel_axis])
    check_stencil(stencil, y.shape[-dims - 1 : -1], channel_axes=channel_axes)


def check_channels(name: str, y: jax.Array, weights_name: str, weights: jax.Array, channels: int) -> None:
    """The last axis of y has as many channels as the weights expect."""
    if y.shape[-1:] != (channels,):
        raise ValueError(
            f"{name} must have {channels} channels on its last axis as {weights_name} of shape {list(weights.shape)} "
            f"asks for, got {name} of shape {list(y.shape)}"
        )


def check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    """ValueError unless choice is one of choices."""
    if choice not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))} here, got {choice!r}")


def check_time_step(h: float | jax.Array) -> None:
    """ValueError for a time step that is known while tracing (a Python number) to be negative or not finite."""
    if isinstance(h, numbers.Real) and not (math.isfinite(h) and h >= 0):
        raise ValueError(f"h must be a finite time step ≥ 0, got {h}")


def promote(x: jax.Array) -> jax.Array:
    """Returns x in float32 at least: the operators accept bfloat16, and compute and sum in float32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _by(sizes):
    return "x".join(map(str, sizes))
