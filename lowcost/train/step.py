"""Optimiser steps and evaluation as pure functions; they know neither the network nor the data set."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowcost.train.state import TrainState

Metrics = dict[str, jax.Array]
PATIENCE = 10


class Draw(NamedTuple):
    """What the augmentation of a batch may depend on.

    Attributes:
        run: key that stays the same all through the run.
        step: key of this step.
        indices: the images' places in the data set, int32 [B].
        epoch: counts from 0, int32.
    """

    run: jax.Array
    step: jax.Array
    indices: jax.Array
    epoch: jax.Array


Augment = Callable[[jax.Array, Draw], jax.Array]


def make_train_step(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    steps_per_epoch: int,
    *,
    average: float | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array], TrainState]:
    """θ ← θ - optimiser(∇ (1/s) Σ L(S(net(augmented images)), labels)), L the cross entropy: Section 2.

    A step whose loss or gradient is not finite is skipped: it is counted, and leaves weights, statistics, average,
    optimiser and metrics as they were. After `PATIENCE` of them in a row the state stands still, its step being the
    next one.

    Args:
        net: module, (images in [0, 1], train) → logits, with statistics in the collection "batch_stats".
        optimizer: of the weights. Its update receives `value`, `grad` and `value_fn`, optax's names for the mean loss
            of the batch, its gradient, and params → loss, as `optax.contrib.reduce_on_plateau` and line searches need.
        augment: (images in [0, 1], what to draw from) → images.
        steps_per_epoch: after so many steps the running metrics start again.
        average: largest decay d of the moving average a ← d·a + (1 - d)·variables, whose decay after t steps is
            min(d, (1 + t) / (10 + t)), so that the first weights are soon forgotten; None for a state without one.

    Returns:
        (state, images [B, *grid, C], labels [B], indices [B]) → state. Images are scaled by `to_unit_range`, which
        checks their dtype; the values of floats are not known while tracing and are not checked. Over a sharded batch
        it means the whole batch: the normalisation's statistics are global.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array) -> TrainState:
        chex.assert_rank(labels, 1)
        chex.assert_equal_shape_prefix([images, labels, indices], 1)
        key = jax.random.wrap_key_data(state.key, impl=state.key_impl)
        draw = Draw(key, jax.random.fold_in(key, state.step), indices, state.step // steps_per_epoch)
        inputs = augment(to_unit_range(images), draw)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = net.apply(variables, inputs, train=True, mutable=["batch_stats"])
            sums = _sums(logits, labels, jnp.ones(labels.shape))
            return sums["loss"] / labels.size, (sums, updates.get("batch_stats", {}))

        (value, (sums, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        extra = {"value": value, "grad": grads, "value_fn": lambda params: loss(params)[0]}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        first = state.step % steps_per_epoch == 0
        metrics = {name: jnp.where(first, 0.0, total) for name, total in state.metrics.items()}
        skipped = state.replace(
            step=state.step + 1,
            metrics=metrics,
            skipped=state.skipped + 1,
            skipped_in_a_row=state.skipped_in_a_row + 1,
        )
        done = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            average=_averaged(state, {"params": params, "batch_stats": batch_stats}, average),
            opt_state=opt_state,
            metrics={name: metrics[name] + sums[name] for name in sums},
            skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
        )
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((sums["loss"], grads))]).all()
        given_up = state.skipped_in_a_row >= PATIENCE
        return _select(given_up, state, _select(finite, done, skipped))

    return train_step


def repeat(train_step: Callable[..., TrainState]) -> Callable[..., TrainState]:
    """(state, n, *batches [K, ...]) → the state after train_step with each of the first n ≤ K batches, in one dispatch.

    One program serves every n: however a run is cut into dispatches, its bits are the same. To be jitted with the
    state donated.
    """

    def train_steps(state: TrainState, n: jax.Array, *batches: jax.Array) -> TrainState:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            batch = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in batches]
            return train_step(state, *batch)

        return jax.lax.fori_loop(0, n, body, state)

    return train_steps


def make_eval_step(net: nn.Module) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array, Metrics], Metrics]:
    """(state, images, labels, weight, sums) → sums with net's on this batch added; weight 0 leaves one out.

    Images are scaled by `to_unit_range` as in `make_train_step`.
    """

    def eval_step(state: TrainState, images: jax.Array, labels: jax.Array, weight: jax.Array, sums: Metrics) -> Metrics:
        logits = net.apply(state.variables, to_unit_range(images), train=False)
        return jax.tree.map(jnp.add, sums, _sums(logits, labels, weight))

    return eval_step


def to_unit_range(images: Any) -> Any:
    """(x - min) / (max - min) of integers, with the range of their dtype; floats are returned as they are.

    No mean is subtracted: behind a periodic opening layer without bias the normalisation removes any constant exactly.

    Args:
        images: of any shape; uint8, uint16, int8 or int16, or real floating point. Integers with more bits are refused,
            because they hardly ever fill their range. NumPy arrays are scaled by NumPy.

    Returns:
        float32 in [0, 1] of integers; floats promoted to float32 at least, whose values are not checked.

    Raises:
        TypeError: another dtype.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.promote_types(images.dtype, jnp.float32))
    if not (jnp.issubdtype(images.dtype, jnp.integer) and images.dtype.itemsize <= 2):
        remedy = "cast grey levels to the type whose range they fill, e.g. np.uint8, and all else to float32"
        raise TypeError(f"images must be (u)int8, (u)int16 or real floating point, got {images.dtype}; {remedy}")
    low, high = jnp.iinfo(images.dtype).min, jnp.iinfo(images.dtype).max
    return (images.astype(jnp.float32) - low) / (high - low)


def mean_metrics(sums: Metrics) -> dict[str, np.ndarray]:
    """sums / count: {"loss", "accuracy"} of one image on average, NaN of none; with several seeds, of each of them."""
    count = np.asarray(sums["count"], float)
    count = np.where(count == 0, math.nan, count)
    return {"loss": np.asarray(sums["loss"]) / count, "accuracy": np.asarray(sums["correct"]) / count}


def _averaged(state: TrainState, variables: Any, most: float | None) -> Any:
    if most is None:
        return state.average
    decay = jnp.minimum(most, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, state.average, variables)


def _select(condition: jax.Array, one: TrainState, other: TrainState) -> TrainState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _sums(logits, labels, weight):
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    return {"loss": jnp.sum(weight * loss), "correct": jnp.sum(weight * correct), "count": jnp.sum(weight)}
