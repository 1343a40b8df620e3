"""Makes optimisers and augmentations from recipes.

A recipe is data, so that `experiments.ablation` can take out each ingredient and measure it.
`recipes.json` holds the ingredients of each recipe that differ from the defaults.
"""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from experiments.common.config import fits
from experiments.common.masked_augment import cropped, of_values, translated
from lowcost import data
from lowcost.terminal import warn
from lowcost.train.step import Augment, AugmentLabels, Draw


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimiser, a schedule, augmentations, and what else speeds up training; the defaults are Section 4's.

    Attributes:
        epochs: number of epochs if the user states none.
        optimizer: "adam"; "adamw", with weight decay; or "muon": AdamW, except for the matrices, whose updates are
            orthogonalised. Matrices are M and the fully coupled stencils of the ResNet's steps, [*window, C_in, C_out],
            taken as matrices of C_out columns.
        learning_rate: the largest one.
        stencil_rate: of adamw and muon: learning rate of all weights but the matrices, divided by theirs.
        schedule: "halving" after every fifth of the run, or "one_cycle": a linear rise from a tenth, then a cosine back
            to it. In a run of under five steps only the fifths that begin at a later step of their own halve the rate.
        weight_decay: of adamw and muon.
        late: number of epochs after which `matrix_decay` and `hidden` begin, which are meant to reduce overfitting.
        matrix_decay: late weight decay of the matrices, added to weight_decay. A normalisation follows M, so that its
            size does not matter; but M grows with every step, and each step then changes M less. Decay keeps M small.
        hidden: late augmentation, 0 for none: a square of this share of the side is hidden (of a signal an interval of
            time), and translations reach twice as far if the side has at least 32 pixels.
        whitening: the opening layer starts with the principal components of image patches.
        average: largest decay of a moving average of weights and statistics, which is evaluated; None for none.
        shift: "resized_crop", a window of 0.8 to 1.2 times the image's side, or "translate" by up to 2 pixels.
        flip: "random", or "alternating" from epoch to epoch; for data sets whose mirror images keep their label.
        scaling: images are multiplied by exp(scaling·z), z ~ N(0, 1).
        jitter: standard deviation of noise that is added.
        mixed: share of the images in which a box comes from another image (CutMix), so that their labels are mixed too.
            Images are mixed only where parts may be hidden; masked signals and labels of points are not.
        label_smoothing: share of the target that is spread over all classes; values have none.
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
    scaling: float = 0.0
    jitter: float = 0.0
    mixed: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a number that an ingredient cannot have."""
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float):
                continue
            if name in ("epochs", "learning_rate"):
                expected, fine = "positive", 0 < value < math.inf
            elif name in ("average", "hidden", "mixed"):
                expected, fine = "from 0 to 1", 0 <= value <= 1
            elif name == "label_smoothing":
                expected, fine = "from 0 to below 1", 0 <= value < 1
            else:
                expected, fine = "at least 0", 0 <= value < math.inf
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {value}; correct it")

    def transformation(self, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
        """Returns the optimiser of a run of `epochs` epochs."""
        rate = self._rate(epochs * steps_per_epoch)
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

    def _rate(self, steps: int) -> optax.Schedule:
        peak = self.learning_rate
        if self.schedule == "one_cycle":
            rise = min(steps - 1, max(1, steps // 20))
            return optax.warmup_cosine_decay_schedule(peak / 10, peak, rise, steps, peak / 10)
        fifths = {steps * i // 5 for i in range(1, 5)} - {0}  # every 60 of the paper's 300 epochs
        return optax.piecewise_constant_schedule(peak, dict.fromkeys(sorted(fifths), 0.5))

    def augmentation(
        self, keeps: tuple[data.Change, ...], moments: data.Moments | None = None, masked: bool = False
    ) -> Augment:
        """Returns (images, draw) → images, which makes the recipe's changes that keep an image's label.

        Args:
            keeps: these changes, see `lowcost.data.Dataset`.
            moments: (means, deviations) of the channels, by which images are standardised before they are changed, so
                that strengths do not depend on units and a hidden part has the mean; None for images from 0 to 1 that
                fill this range.
            masked: the last channel is a mask, as in `lowcost.data.Dataset`. It moves with its signal, and is neither
                hidden nor scaled. A signal that a shift would remove stays as it is.
        """
        grey = 0.5 if moments is None else 0.0  # the hidden square is neither dark nor bright

        def light(key: jax.Array, images: jax.Array, pixels: int = 2) -> jax.Array:
            if "shift" not in keeps:
                return images
            if self.shift == "translate":
                return translated(key, images, min(pixels, min(images.shape[1:-1]) - 1), masked)
            return cropped(key, images, masked)

        def heavy(key: jax.Array, images: jax.Array) -> jax.Array:
            shift_key, hole_key = jax.random.split(key)
            side = min(images.shape[1:-1])
            shifted = light(shift_key, images, 4 if side >= 32 else 2)
            if "hide" not in keeps:
                return shifted
            hide = partial(data.cutout, hole_key, pixels=round(self.hidden * side))
            hidden = of_values(lambda x: hide(x - grey) + grey, shifted, masked)
            return jnp.where(hide(shifted[..., -1:]).any(1, keepdims=True), hidden, shifted) if masked else hidden

        def augment(images: jax.Array, draw: Draw) -> jax.Array:
            shift_key, flip_key = jax.random.split(draw.step)
            if self.hidden:
                images = jax.lax.cond(draw.epoch < self.late, light, heavy, shift_key, images)
            else:
                images = light(shift_key, images)
            if self.scaling and "scale" in keeps:  # keys from 2 on, since fold_in(key, i) may equal split(key)[i]
                scale = partial(data.random_scale, jax.random.fold_in(draw.step, 2), spread=self.scaling)
                images = of_values(scale, images, masked)
            if self.jitter and "noise" in keeps:
                noise = partial(data.jitter, jax.random.fold_in(draw.step, 3), deviation=self.jitter)
                images = of_values(noise, images, masked)
            if "flip" in keeps and self.flip == "random":
                images = data.random_flip(flip_key, images)
            elif "flip" in keeps:
                images = data.alternating_flip(draw.run, images, draw.indices, draw.epoch)
            return self._mix(images, draw)[0] if self.mixes(keeps, masked) else images

        def augment_in_units(images: jax.Array, draw: Draw) -> jax.Array:
            assert moments is not None
            changed = augment(data.to_standard_units(images, moments, masked), draw)
            return data.from_standard_units(changed, moments, masked)

        return augment if moments is None else augment_in_units

    def mixes(self, keeps: tuple[data.Change, ...], masked: bool = False) -> bool:
        """Returns whether `augmentation` mixes images, and the loss must be `losses.mixed`."""
        return self.mixed > 0 and "hide" in keeps and not masked

    def _mix(self, images: jax.Array, draw: Draw) -> tuple[jax.Array, jax.Array]:
        return data.cutmix(jax.random.fold_in(draw.step, 4), images, probability=self.mixed)

    def label_mixing(self, grid: tuple[int, ...]) -> AugmentLabels:
        """Returns (labels [B, ...], draw) → (labels, their partners, shares) of the images that `augmentation` mixes.

        Args:
            grid: of the images.
        """

        def augment(labels: jax.Array, draw: Draw) -> Any:
            _, shares = self._mix(jnp.zeros((len(labels), *grid, 1)), draw)
            return labels, jnp.roll(labels, -1, axis=0), shares

        return augment

    def label_augmentation(self, keeps: tuple[data.Change, ...], classes: int) -> Augment:
        """Returns (labels [B, *grid], draw) → labels: the flips and shifts that `augmentation` makes of the images.

        All other changes leave the labels as they are. A moved point has the class with the largest share of its
        weights, or `data.IGNORED` if at most half of them are of points with a label inside the image.
        """
        moves = tuple(change for change in keeps if change in ("flip", "shift"))
        move = dataclasses.replace(self, scaling=0.0, jitter=0.0).augmentation(moves)

        def augment(labels: jax.Array, draw: Draw) -> jax.Array:
            shares = move(jax.nn.one_hot(labels, classes), draw)  # all 0 at points without a label
            return jnp.where(shares.sum(-1) > 0.5, shares.argmax(-1), data.IGNORED).astype(labels.dtype)

        return augment


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
RECIPES = {name: Recipe(**ingredients) for name, ingredients in _DATA.items()}
"""The recipes by the names that the flag --recipe takes."""


def recipe_named(name: str) -> Recipe:
    """Returns a recipe of `RECIPES`, or of a file FILE.json with ingredients as in recipes.json.

    Raises:
        ValueError, OSError: an unknown name, a file that cannot be read, or an unknown or wrong ingredient.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".json"):
        raise ValueError(f"--recipe must be {', '.join(RECIPES)} or a file FILE.json, got {name!r}")
    kinds = get_type_hints(Recipe)
    expected = f"--recipe {name} must be a JSON object with ingredients of a recipe ({', '.join(kinds)})"
    try:
        ingredients = json.loads(Path(name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{expected}, got {error}") from None
    if not isinstance(ingredients, dict):
        raise ValueError(f"{expected}, got {type(ingredients).__name__}")
    for key, value in ingredients.items():
        if key not in kinds or not fits(value, kinds[key]):
            raise ValueError(f"{expected}, got {key} {value!r}; see experiments/common/recipes.json")
    try:
        recipe = Recipe(**ingredients)
    except ValueError as error:
        raise ValueError(f"--recipe {name}: {error}") from None
    for key in ("stencil_rate", "weight_decay", "matrix_decay"):
        if recipe.optimizer == "adam" and (value := getattr(recipe, key)) != getattr(Recipe, key):
            warn(f'--recipe {name}: the optimizer adam ignores {key}, got {value}; state "optimizer": "adamw"')
    return recipe


def _is_matrix(params):
    """Returns which weights are matrices: M, by its name, and coupled stencils of steps, by name and shape.

    These are [*window, C, C]; depth-wise stencils are [*window, C]. The opening and the classifier are no steps. If C
    is the number of points per axis, both shapes can be equal, and stencils are no matrices.
    """

    def is_matrix(path, x):
        name, coupled = path[-1].key, x.ndim > 2 and x.shape[0] != x.shape[-2] == x.shape[-1]
        return name.startswith("matrix") or (name.startswith("stencil") and coupled and path[0].key != "opening")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _is_no_matrix(params):
    return jax.tree.map(lambda matrix: not matrix, _is_matrix(params))


def _matrices(params):
    """Returns how a matrix is read: [*window, C_in, C_out] as prod(window)·C_in rows and C_out columns."""

    def axes(x, matrix):
        return MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1) if matrix else None

    return jax.tree.map(axes, params, _is_matrix(params))
