"""Makes optimiser steps and evaluations, as pure functions, for any network and data set."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowcost.scaling import to_unit_range
from lowcost.train.distillation import Teacher, mean_probabilities
from lowcost.train.losses import Figures, Loss, cross_entropy
from lowcost.train.overlap import mean_overlaps
from lowcost.train.state import TrainState

Sums = dict[str, jax.Array]
"""Sums over images of a loss's figures, with "loss" weighted, and their number "count"; see `mean_metrics`."""
PATIENCE = 10
"""The number of skipped steps in a row after which training gives up."""


class Draw(NamedTuple):
    """The arguments of an augmentation besides the images.

    Attributes:
        run: random key of the run.
        step: random key of the step.
        indices: the images' indices in the data set, int32 [B].
        epoch: counts from 0, int32.
    """

    run: jax.Array
    step: jax.Array
    indices: jax.Array
    epoch: jax.Array


Augment = Callable[[jax.Array, Draw], jax.Array]
AugmentLabels = Callable[[jax.Array, Draw], Any]
"""(labels, the draw of their images) → what the loss takes as labels."""
TrainSteps = Callable[..., TrainState]
"""(state, n, *batches) → state, see `repeat`."""


def make_train_step(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    steps_per_epoch: int,
    *,
    average: float | None = None,
    loss: Loss = cross_entropy,
    augment_labels: AugmentLabels | None = None,
) -> Callable[..., TrainState]:
    """Returns the step θ ← θ - optimiser(∇ Σ w L(net(images), labels) / Σ w): the loss L of Section 2, weights w = 1.

    The images are augmented first. A step whose loss or gradient is not finite is counted and skipped. The state no
    longer changes after `PATIENCE` such steps in a row.

    Args:
        net: module, (images, train) → outputs, with statistics in the collection "batch_stats". Images that come as
            integers are in [0, 1]; floats have their own values, which a network with moments standardises.
        optimizer: optimiser of the weights. Its update also receives `value` (the mean loss), `grad` (its gradient) and
            `value_fn` (params → loss), which `optax.contrib.reduce_on_plateau` and line searches need.
        augment: (the same images, draw) → images; `draw` is a `Draw`: random keys, indices of the images, and epoch.
        steps_per_epoch: number of steps after which the running metrics restart.
        average: limit d of the decay min(d, (1 + t) / (10 + t)) of a moving average after t steps; None for none.
        loss: L and w of each image, see `lowcost.train.losses`.
        augment_labels: (labels, the same draw) → what the loss takes as labels, such as those of points, moved with the
            images; None for the labels.

    Returns:
        (state, images [B, *grid, C], labels of the loss, indices [B] in the data set, teachers=()) → state.
        `to_unit_range` scales the images, and raises TypeError for unknown dtypes. Normalisations use statistics of the
        whole global batch. With teachers the loss takes (labels, their mean probabilities for the augmented images).

    Raises:
        ValueError: by the step, for a state that was created for other figures than those of the loss, or with a
            moving average and the step without one, or the other way round.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, images: jax.Array, labels: Any, indices: jax.Array, teachers: Sequence[Teacher] = ()
    ) -> TrainState:
        chex.assert_equal_shape_prefix([images, indices, *jax.tree.leaves(labels)], 1)
        if (state.average is None) != (average is None):
            words = ["a moving average", "no moving average"][:: 1 if state.average is None else -1]
            remedy = f"make it by create_state(..., average={average is not None}), or the step with another average"
            raise ValueError(f"the state must have {words[0]}, as the step, got {words[1]}; {remedy}")
        key = jax.random.wrap_key_data(state.key, impl=state.key_impl)
        draw = Draw(key, jax.random.fold_in(key, state.step), indices, state.step // steps_per_epoch)
        inputs = augment(to_unit_range(images), draw)
        labels = labels if augment_labels is None else augment_labels(labels, draw)
        labels = (labels, mean_probabilities(teachers, inputs)) if teachers else labels

        def mean_loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, updates = net.apply(variables, inputs, train=True, mutable=["batch_stats"])
            sums = _sums(loss(outputs, labels), jnp.ones(len(indices)))
            _check_figures(sums, state.metrics)
            return _mean_loss(sums), (sums, updates.get("batch_stats", {}))

        (value, (sums, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        extra = {"value": value, "grad": grads, "value_fn": lambda params: mean_loss(params)[0]}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        following = _following(state, steps_per_epoch)
        done = following.replace(
            params=params,
            batch_stats=batch_stats,
            average=_averaged(state, {"params": params, "batch_stats": batch_stats}, average),
            opt_state=opt_state,
            metrics=jax.tree.map(jnp.add, following.metrics, sums),
            skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
        )
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((sums["loss"], grads))]).all()
        return _choose(finite, done, following, state)

    return train_step


def repeat(train_step: Callable[..., TrainState]) -> TrainSteps:
    """Returns (state, n, *batches [K, ...]) → the state after train_step with each of the first n ≤ K batches.

    One program serves every n, so that the division of a run into dispatches changes no bit. Jit it with the state
    donated. Keyword arguments, such as `teachers`, are passed on to each step.
    """

    def train_steps(state: TrainState, n: jax.Array, *batches: Any, **shared: Any) -> TrainState:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
            return train_step(state, *batch, **shared)

        return jax.lax.fori_loop(0, n, body, state)

    return train_steps


def make_eval_step(
    net: nn.Module, loss: Loss = cross_entropy, infer: Callable[[Any, Any, jax.Array], Any] | None = None
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], Sums]:
    """Returns (variables, images, labels, mask [B]) → the sums over this batch; mask 0 leaves an image out, 1 counts.

    The outputs are those of net for images that `to_unit_range` scales, as in `make_train_step`: integers of 8 and 16
    bits to [0, 1], floats not at all, and other dtypes are a TypeError. The figures are those of `loss`.
    `infer` computes the outputs from (net, variables, images), e.g. `lowcost.nn.infer`; by default `net.apply` does.
    """

    def eval_step(variables: Any, images: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
        images = to_unit_range(images)
        outputs: Any = infer(net, variables, images) if infer else net.apply(variables, images, train=False)
        return _sums(loss(outputs, labels), mask)

    return eval_step


def mean_metrics(sums: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Σ w L / Σ w, and the share of correct answers; NaN over no images; with several seeds, of each of them.

    Args:
        sums: {"loss", "count"}, "weight" for other w than 1, and "correct" or "confusion" if there is an accuracy.

    Returns:
        {"loss", "accuracy"}, or {"loss"}; of points {"loss"} and the figures of `mean_overlaps`.
    """
    total = {name: np.asarray(figure, float) for name, figure in sums.items()}
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        means = {"loss": total["loss"] / total.get("weight", total["count"])}
        if "confusion" in total:
            return means | mean_overlaps(total["confusion"])
        return means | ({"accuracy": total["correct"] / total["count"]} if "correct" in total else {})


def _check_figures(sums: Sums, metrics: Mapping[str, Any]) -> None:
    """Raises ValueError unless the state was made for the figures of this loss."""
    shapes = [{name: jnp.shape(x) for name, x in of.items() if name != "count"} for of in (sums, metrics)]
    if shapes[0] != shapes[1]:
        expected = f"the state must have the figures of the loss, {shapes[0]}"
        raise ValueError(f"{expected}, got {shapes[1]}; make it by create_state(..., figures={shapes[0]})")


def _following(state: TrainState, steps_per_epoch: int) -> TrainState:
    """Returns the state at the next step, with metrics of 0 at the first step of an epoch."""
    restart = state.step % steps_per_epoch == 0
    metrics = {name: jnp.where(restart, 0.0, total) for name, total in state.metrics.items()}
    return state.replace(step=state.step + 1, metrics=metrics)


def _choose(finite: jax.Array, done: TrainState, following: TrainState, state: TrainState) -> TrainState:
    """Returns done if finite, else following with one more skipped step; state after `PATIENCE` such steps in a row."""
    skipped = following.replace(skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1)
    choice = jax.tree.map(partial(jnp.where, finite), done, skipped)
    given_up = state.skipped_in_a_row >= PATIENCE
    return jax.tree.map(partial(jnp.where, given_up), state, choice)


def _averaged(state: TrainState, variables: Any, decay_max: float | None) -> Any:
    if decay_max is None:
        return state.average
    decay = jnp.minimum(decay_max, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, state.average, variables)


def _mean_loss(sums: Sums) -> jax.Array:
    """Returns Σ w L / Σ w."""
    weight = sums.get("weight", sums["count"])
    if "weight" in sums:  # 0 if no point of the batch has a label
        weight = jnp.where(weight > 0, weight, 1)
    return sums["loss"] / weight


def _sums(figures: Figures, mask: jax.Array) -> Sums:
    weighted = {**figures, "loss": figures.get("weight", 1) * figures["loss"]}

    def total(figure: jax.Array) -> jax.Array:
        return jnp.sum(mask.reshape(-1, *[1] * (figure.ndim - 1)) * figure, axis=0)

    return {"count": jnp.sum(mask), **{name: total(figure) for name, figure in weighted.items()}}
