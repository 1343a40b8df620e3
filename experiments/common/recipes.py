"""How to train: a recipe is data, so that each of its ingredients can be taken out and measured (`ablation`)."""

import dataclasses
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lowcost.data import alternating_flip, cutout, random_flip, random_resized_crop, random_translate
from lowcost.train.step import Augment, Draw


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimiser, a schedule, augmentations, and what else shortens the way; the defaults are Section 4's.

    Attributes:
        epochs: how long to train when the user does not say.
        optimizer: "adam"; "adamw", with weight decay; or "muon", AdamW but for the matrices M, whose updates are
            orthogonalised.
        learning_rate: the largest.
        stencil_rate: of adamw and muon: learning rate of all but the matrices M, over theirs.
        schedule: "halving" after every fifth of the run, or "one_cycle": a linear rise from a tenth, then a cosine back
            to it. Of a run of under five steps only the fifths that begin at a later step of their own halve it.
        weight_decay: of adamw and muon.
        late: after so many epochs begins what keeps a network from learning the images by heart: the next two.
        matrix_decay: late weight decay of the matrices M, added to weight_decay. Behind a normalisation the size of M
            does not matter, but M grows with every step, and each then changes less of it: decay keeps it small.
        hidden: late augmentation, 0 for none: a square of this share of the side is hidden, and translations reach
            twice as far, if the side has 32 pixels at least.
        whitening: the opening layer starts with the principal components of image patches.
        average: largest decay of a moving average of weights and statistics, which is what is evaluated; None for none.
        shift: "resized_crop", a window of 0.8 to 1.2 times the image's side, or "translate" by up to 2 pixels.
        flip: "random", or "alternating" from epoch to epoch; for data sets whose mirror images keep their label.
    """

    epochs: int = 300
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    learning_rate: float = 0.01
    stencil_rate: float = 1.0
    schedule: Literal["halving", "one_cycle"] = "halving"
    weight_decay: float = 0.0
    late: int = 0
    matrix_decay: float = 0.0
    hidden: float = 0.0
    whitening: bool = False
    average: float | None = None
    shift: Literal["resized_crop", "translate"] = "resized_crop"
    flip: Literal["random", "alternating"] = "random"

    def transformation(self, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many epochs."""
        steps = epochs * steps_per_epoch
        if self.schedule == "halving":  # every 60 of the paper's 300 epochs
            fifths = {steps * i // 5 for i in range(1, 5)} - {0}  # fewer than four in a run of under five steps
            rate = optax.piecewise_constant_schedule(self.learning_rate, dict.fromkeys(sorted(fifths), 0.5))
        else:
            peak = self.learning_rate
            rise = min(steps - 1, max(1, steps // 20))
            rate = optax.warmup_cosine_decay_schedule(peak / 10, peak, rise, steps, peak / 10)
        if self.optimizer == "adam":
            return optax.adam(rate)

        def decay(step: jax.Array) -> jax.Array:
            return self.weight_decay + jnp.where(step < self.late * steps_per_epoch, 0.0, self.matrix_decay)

        if self.optimizer == "adamw":
            return optax.chain(
                optax.scale_by_adam(),
                optax.add_decayed_weights(self.weight_decay, _is_no_matrix),
                optax.add_decayed_weights(decay, _is_matrix),
                optax.scale_by_learning_rate(rate),
                optax.masked(optax.scale(self.stencil_rate), _is_no_matrix),
            )
        return muon(
            rate,
            weight_decay=decay,
            adam_weight_decay=self.weight_decay,
            adam_learning_rate=lambda step: self.stencil_rate * rate(step),
            consistent_rms=0.2,  # updates as large as Adam's, so that one learning rate suits both
            muon_weight_dimension_numbers=_matrices,
        )

    def augmentation(self, mirror: bool) -> Augment:
        """(images, draw) → images; mirrored only where a mirror image keeps its label."""

        def light(key: jax.Array, images: jax.Array, pixels: int = 2) -> jax.Array:
            if self.shift == "resized_crop":
                return random_resized_crop(key, images)
            return random_translate(key, images, pixels=pixels)

        def heavy(key: jax.Array, images: jax.Array) -> jax.Array:
            shift_key, hole_key = jax.random.split(key)
            grey = 0.5  # what is hidden is neither dark nor bright
            side = min(images.shape[1:3])
            far = 4 if side >= 32 else 2
            return cutout(hole_key, light(shift_key, images, far) - grey, pixels=round(self.hidden * side)) + grey

        def augment(images: jax.Array, draw: Draw) -> jax.Array:
            shift_key, flip_key = jax.random.split(draw.step)
            if self.hidden:
                images = jax.lax.cond(draw.epoch < self.late, light, heavy, shift_key, images)
            else:
                images = light(shift_key, images)
            if not mirror:
                return images
            if self.flip == "random":
                return random_flip(flip_key, images)
            return alternating_flip(draw.run, images, draw.indices, draw.epoch)

        return augment


RECIPES = {
    "paper": Recipe(),
    "fast": Recipe(
        epochs=30,
        optimizer="muon",
        learning_rate=0.02,
        stencil_rate=0.3,
        schedule="one_cycle",
        weight_decay=1e-5,
        late=5,
        matrix_decay=0.02,
        hidden=0.375,
        whitening=True,
        average=0.999,
        shift="translate",
        flip="alternating",
    ),
}
"""By name, as the flag --recipe takes them."""


def _is_matrix(params):
    """Which weights are matrices M: all whose name begins so; a stencil or the classifier is not."""
    return jax.tree_util.tree_map_with_path(lambda path, x: path[-1].key.startswith("matrix"), params)


def _is_no_matrix(params):
    return jax.tree.map(operator.not_, _is_matrix(params))


def _matrices(params):
    return jax.tree.map(lambda matrix: MuonDimensionNumbers() if matrix else None, _is_matrix(params))
