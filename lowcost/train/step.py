"""One optimiser step and one evaluation as pure functions; they know neither the network nor the data set."""

import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lowcost.train.state import TrainState

Augment = Callable[[jax.Array, jax.Array], jax.Array]
Metrics = dict[str, jax.Array]
PATIENCE = 10


def make_train_step(
    net: nn.Module, optimizer: optax.GradientTransformation, augment: Augment, seed: int, steps_per_epoch: int
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState]:
    """θ ← θ - optimiser(∇ (1/s) Σ L(S(net(augmented images)), labels)), L the cross entropy: Section 2.

    A step whose loss or gradient is not finite is skipped: it is counted, and leaves weights, statistics, optimiser and
    metrics as they were. After `PATIENCE` of them in a row the state stands still, its step being the next one.

    Args:
        net: module, (images in [0, 1], train) → logits, with statistics in the collection "batch_stats".
        optimizer: of the weights.
        augment: (key, images) → images.
        seed: of the augmentation; a step's randomness depends on (seed, step) alone, so that a resumed run repeats it.
        steps_per_epoch: after so many steps the running metrics start again.

    Returns:
        (state, images uint8 [B, *grid, C], labels [B]) → state, to be jitted with the state donated. Over a sharded
        batch it means the whole batch: the normalisation's statistics are global.
    """

    def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
        chex.assert_rank(labels, 1)
        chex.assert_equal_shape_prefix([images, labels], 1)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        inputs = augment(key, to_unit_range(images))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = net.apply(variables, inputs, train=True, mutable=["batch_stats"])
            sums = _sums(logits, labels, jnp.ones(labels.shape))
            return sums["loss"] / labels.size, (sums, updates.get("batch_stats", {}))

        grads, (sums, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
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
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics={name: metrics[name] + sums[name] for name in sums},
            skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
        )
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((sums["loss"], grads))]).all()
        given_up = state.skipped_in_a_row >= PATIENCE
        return _select(given_up, state, _select(finite, done, skipped))

    return train_step


def make_eval_step(net: nn.Module) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array, Metrics], Metrics]:
    """(state, images uint8, labels, weight, sums) → sums with this batch added; weight 0 leaves a padded image out."""

    def eval_step(state: TrainState, images: jax.Array, labels: jax.Array, weight: jax.Array, sums: Metrics) -> Metrics:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = net.apply(variables, to_unit_range(images), train=False)
        return jax.tree.map(jnp.add, sums, _sums(logits, labels, weight))

    return eval_step


def _select(condition: jax.Array, one: TrainState, other: TrainState) -> TrainState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def to_unit_range(images: jax.Array) -> jax.Array:
    """uint8 0 … 255 → float32 in [0, 1].

    No mean is subtracted: behind a periodic opening layer without bias the normalisation removes any constant exactly.
    """
    return images.astype(jnp.float32) / 255


def mean_metrics(sums: Metrics) -> dict[str, float]:
    """{"loss", "accuracy"} of one image on average, NaN of none."""
    count = float(sums["count"]) or math.nan
    return {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}


def _sums(logits, labels, weight):
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    return {"loss": jnp.sum(weight * loss), "correct": jnp.sum(weight * correct), "count": jnp.sum(weight)}
