"""The state of training from step to step; a checkpoint of it suffices to resume exactly."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """Weights, statistics, optimiser state, and the running sums of the current epoch.

    With several seeds at once every leaf has a leading axis of seeds (`jax.vmap`).

    Attributes:
        step: number of optimiser steps done, int32.
        key: random key of the run, as `jax.random.key_data`; the random numbers of a step depend on (key, step) alone.
        params: weights.
        batch_stats: running mean and variance of the normalisations.
        average: moving average of {"params", "batch_stats"}, or None without one.
        opt_state: state of the optimiser.
        metrics: sums over the current epoch, {"loss", "correct", "count"}, float32.
        skipped: number of steps whose loss or gradient was not finite, and which changed nothing, int32.
        skipped_in_a_row: number of the latest steps that were all skipped, int32.
        key_impl: generator of the key, as `jax.random.key_impl`, not saved; None for JAX's default.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    average: Any
    opt_state: Any
    metrics: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    key_impl: Any = flax.struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate and deploy: the average where there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    average: bool = False,
) -> TrainState:
    """Returns the state before the first step; pure, so that `jax.eval_shape` can check a network and an image size.

    Args:
        net: module, (images [B, *image_shape], train) → logits.
        optimizer: optimiser of the weights.
        seed_key: random key of the initial weights and of the whole run.
        image_shape: [*grid, C].
        average: whether the state has a moving average.

    Raises:
        ValueError: the network does not accept images of this shape.
    """
    variables = net.init(seed_key, jnp.zeros((1, *image_shape)), train=False)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        key=jax.random.key_data(seed_key),
        **variables,
        average=variables if average else None,
        opt_state=optimizer.init(variables["params"]),
        metrics=zero_metrics(),
        skipped=zero,
        skipped_in_a_row=zero,
        key_impl=jax.random.key_impl(seed_key),
    )


def zero_metrics() -> dict[str, jax.Array]:
    """Returns {"loss", "correct", "count"}, each zero: the sums over no images."""
    return {name: jnp.zeros(()) for name in ("loss", "correct", "count")}


def count_weights(params: Any) -> int:
    """Returns the number of learned weights in params, as Table 2 counts them."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
