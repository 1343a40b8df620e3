"""One optimiser step and one evaluation as pure functions; they know neither the network nor the data set."""

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


def make_train_step(
    net: nn.Module, optimizer: optax.GradientTransformation, augment: Augment, seed: int, steps_per_epoch: int
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState]:
    """θ ← θ - optimiser(∇ (1/s) Σ L(S(net(augmented images)), labels)), L the cross entropy: Section 2.

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
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics={name: jnp.where(first, 0.0, state.metrics[name]) + sums[name] for name in sums},
        )

    return train_step


def make_eval_step(net: nn.Module) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array, Metrics], Metrics]:
    """(state, images uint8, labels, weight, sums) → sums with this batch added; weight 0 leaves a padded image out."""

    def eval_step(state: TrainState, images: jax.Array, labels: jax.Array, weight: jax.Array, sums: Metrics) -> Metrics:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = net.apply(variables, to_unit_range(images), train=False)
        return jax.tree.map(jnp.add, sums, _sums(logits, labels, weight))

    return eval_step


def to_unit_range(images: jax.Array) -> jax.Array:
    """uint8 0 … 255 → float32 in [0, 1].

    No mean is subtracted: behind a periodic opening layer without bias the normalisation removes any constant exactly.
    """
    return images.astype(jnp.float32) / 255


def mean_metrics(sums: Metrics) -> dict[str, float]:
    """{"loss", "accuracy"} of one image on average."""
    count = max(float(sums["count"]), 1.0)
    return {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}


def _sums(logits, labels, weight):
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    return {"loss": jnp.sum(weight * loss), "correct": jnp.sum(weight * correct), "count": jnp.sum(weight)}
