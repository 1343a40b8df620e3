"""Holds the state of training from step to step; a checkpoint of it suffices to resume exactly."""

from collections.abc import Mapping, Sequence
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
        metrics: sums over the current epoch, float32, see `step.Sums`.
        skipped: number of steps whose loss or gradient was not finite, and which changed nothing, int32.
        skipped_in_a_row: number of the latest steps that were all skipped, int32.
        best: the best variables by the validation images so far, see `keep_best`; None without them.
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
    best: Any = None
    key_impl: Any = flax.struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables as they are now: the average where there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def chosen(self) -> dict[str, Any]:
        """The variables to deploy: the best ones if they were kept, else those of the last step."""
        return self.best["variables"] if self.best else self.variables


def create_state(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    average: bool = False,
    best: bool = False,
    figures: Sequence[str] | Mapping[str, tuple[int, ...]] = ("loss", "correct"),
) -> TrainState:
    """Returns the state before the first step; pure, so that `jax.eval_shape` can check a network and an image size.

    Args:
        net: module, (images [B, *image_shape], train) → logits.
        optimizer: optimiser of the weights.
        seed_key: random key of the initial weights and of the whole run.
        image_shape: [*grid, C].
        average: whether the state has a moving average.
        best: whether the state keeps the best variables.
        figures: names of the figures of the loss, see `lowcost.train.losses`; or name → shape of its sum over images.

    Raises:
        ValueError: the network does not accept images of this shape.
    """
    variables = net.init(seed_key, jnp.zeros((1, *image_shape)), train=False)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    zero = jnp.zeros((), jnp.int32)
    shapes = figures if isinstance(figures, Mapping) else dict.fromkeys(figures, ())
    state = TrainState(
        step=zero,
        key=jax.random.key_data(seed_key),
        **variables,
        average=variables if average else None,
        opt_state=optimizer.init(variables["params"]),
        metrics={name: jnp.zeros(shape) for name, shape in {"count": (), **shapes}.items()},
        skipped=zero,
        skipped_in_a_row=zero,
        best={"variables": variables, "score": jnp.full((), -jnp.inf, float), "epoch": zero} if best else None,
        key_impl=jax.random.key_impl(seed_key),
    )
    return jax.tree.map(jnp.copy, state)  # so that no two parts, and not the caller's key, share what may be donated


def keep_best(state: TrainState, score: jax.Array, epoch: jax.Array) -> TrainState:
    """Returns the state with its present variables as the best ones if score > state.best["score"].

    The first epoch with the highest score wins. With several seeds each has its own best epoch.

    Args:
        state: with {"variables", "score", "epoch"} in `best`.
        score: of the present variables, float32; [seeds] for several.
        epoch: int32, of the shape of the score.
    """
    now = {"variables": state.variables, "score": score, "epoch": epoch}
    better = score > state.best["score"]
    choose = jax.vmap(jnp.where) if score.ndim else jnp.where
    return state.replace(best=jax.tree.map(lambda new, old: choose(better, new, old), now, state.best))


def count_weights(params: Any) -> int:
    """Returns the number of learned weights in params, as Table 2 counts them."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
