"""How to train: optimiser, schedule and augmentation."""

from collections.abc import Callable

import jax
import optax

from lowcost.data import random_flip, random_resized_crop


def _paper(steps_per_epoch: int, epochs: int) -> optax.GradientTransformation:
    """Adam from 0.01, halved after every fifth of the run, that is every 60 of the paper's 300 epochs: Section 4."""
    steps = epochs * steps_per_epoch
    return optax.adam(optax.piecewise_constant_schedule(0.01, {steps * i // 5: 0.5 for i in range(1, 5)}))


def _fast(steps_per_epoch: int, epochs: int) -> optax.GradientTransformation:
    """AdamW, one cycle: linearly to 0.02 over the first tenth, then a cosine down to zero."""
    steps = epochs * steps_per_epoch
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.02, steps // 10, steps), weight_decay=1e-5)


RECIPES: dict[str, Callable[[int, int], optax.GradientTransformation]] = {"paper": _paper, "fast": _fast}
"""(steps per epoch, epochs) → optimiser, by the recipe's name."""


def augmentation(flip: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Random resizing, cropping and, where a mirror image keeps its label, horizontal flip: Section 4."""

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        images = random_resized_crop(crop_key, images)
        return random_flip(flip_key, images) if flip else images

    return augment
