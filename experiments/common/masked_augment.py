"""Augments signals with a mask, which moves with its signal and otherwise stays; without a mask as `lowcost.data`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lowcost import data


def of_values(function: Callable[[jax.Array], jax.Array], images: jax.Array, masked: bool) -> jax.Array:
    """Returns function(images), of masked signals with their own mask and with zeros on the padding."""
    if not masked:
        return function(images)
    mask = images[..., -1:]
    return jnp.concatenate([function(images[..., :-1]) * mask, mask], axis=-1)


def translated(key: jax.Array, images: jax.Array, pixels: int, masked: bool) -> jax.Array:
    """Returns randomly translated images; a masked signal that this would remove stays as it is."""
    return _kept(data.random_translate(key, images, pixels=pixels), images, masked)


def cropped(key: jax.Array, images: jax.Array, masked: bool) -> jax.Array:
    """Returns random crops; a masked signal that this would remove stays as it is."""
    moved = _masked_crop(key, images) if masked else data.random_resized_crop(key, images)
    return _kept(moved, images, masked)


def _kept(moved: jax.Array, images: jax.Array, masked: bool) -> jax.Array:
    return jnp.where(moved[..., -1:].any(1, keepdims=True), moved, images) if masked else moved


def _masked_crop(key: jax.Array, signals: jax.Array) -> jax.Array:
    """Crops each signal within its own length; a new point is valid if more than half of its weights are."""
    moved = data.random_resized_crop(key, signals, extent=signals[..., -1].sum(1, keepdims=True))
    weights, valid = moved[..., -1:], moved[..., -1:] > 0.5
    values = jnp.where(valid, moved[..., :-1] / jnp.where(valid, weights, 1), 0)
    return jnp.concatenate([values, valid.astype(moved.dtype)], axis=-1)
