"""Everything that training carries from step to step; a checkpoint of it is enough to go on exactly."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """Weights, statistics, optimiser state and the running sums of the present epoch.

    Attributes:
        step: optimiser steps done, int32.
        params: weights.
        batch_stats: running mean and variance of the normalisations.
        opt_state: the optimiser's.
        metrics: sums over the present epoch, {"loss", "correct", "count"}, float32.
        skipped: steps whose loss or gradient was not finite, and which changed nothing, int32.
        skipped_in_a_row: the last so many steps were among them, int32.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    metrics: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def create_state(
    net: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, ...]
) -> TrainState:
    """The state before the first step; pure, so that `jax.eval_shape` checks a network against an image size.

    Args:
        net: module, (images [B, *image_shape], train) → logits.
        optimizer: of the weights.
        key: of the initial weights.
        image_shape: [*grid, C].

    Raises:
        ValueError: the network cannot take images of this shape.
    """
    variables = net.init(key, jnp.zeros((1, *image_shape)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, batch_stats, optimizer.init(params), zero_metrics(), zero, zero)


def zero_metrics() -> dict[str, jax.Array]:
    """{"loss", "correct", "count"}: sums over no images."""
    return {name: jnp.zeros(()) for name in ("loss", "correct", "count")}


def count_weights(params: Any) -> int:
    """Learned numbers, as Table 2 counts them."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
