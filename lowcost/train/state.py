"""Everything that training carries from step to step; a checkpoint of it is enough to go on exactly."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """Weights, statistics, optimiser state and the running sums of the present epoch.

    With several seeds at once every leaf has a leading axis of them (`jax.vmap`).

    Attributes:
        step: optimiser steps done, int32.
        key: of the run's randomness, as `jax.random.key_data`; what a step draws depends on (key, step) alone.
        params: weights.
        batch_stats: running mean and variance of the normalisations.
        average: moving average of {"params", "batch_stats"}, or None where the recipe takes none.
        opt_state: the optimiser's.
        metrics: sums over the present epoch, {"loss", "correct", "count"}, float32.
        skipped: steps whose loss or gradient was not finite, and which changed nothing, int32.
        skipped_in_a_row: the last so many steps were among them, int32.
        key_impl: generator of the key, as `jax.random.key_impl`, not saved; None is JAX's default.
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
        """What is evaluated and deployed: the average where there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    average: bool = False,
) -> TrainState:
    """The state before the first step; pure, so that `jax.eval_shape` checks a network against an image size.

    Args:
        net: module, (images [B, *image_shape], train) → logits.
        optimizer: of the weights.
        seed_key: of the initial weights, and of all that the run draws later.
        image_shape: [*grid, C].
        average: whether to carry a moving average.

    Returns:
        Step 0, the weights drawn, the statistics of none, the optimiser's first state.

    Raises:
        ValueError: the network cannot take images of this shape.
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
    """{"loss", "correct", "count"}: sums over no images."""
    return {name: jnp.zeros(()) for name in ("loss", "correct", "count")}


def count_weights(params: Any) -> int:
    """Numbers in params, all of them learned, as Table 2 counts them."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
