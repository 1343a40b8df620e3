"""Distils networks: trains towards the probabilities of other networks, the teachers."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lowcost.train.losses import Figures, Loss


class Teacher(flax.struct.PyTreeNode):
    """net.apply(variables, images) → logits [B, K]: a trained network; as an argument of `jax.jit` its net is static.

    Attributes:
        net: the network.
        variables: {"params", "batch_stats"}.
    """

    net: nn.Module = flax.struct.field(pytree_node=False)
    variables: Any


def mean_probabilities(teachers: Sequence[Teacher], images: jax.Array) -> jax.Array:
    """(1/T) Σ_t S(net_t(images)) with the softmax S: the mean of the probabilities of T teachers, [B, K]."""
    logits: list[Any] = [teacher.net.apply(teacher.variables, images, train=False) for teacher in teachers]
    return jnp.mean(jnp.stack([jax.nn.softmax(x) for x in logits]), axis=0)


def distilled(logits: jax.Array, labels: tuple[jax.Array, jax.Array], *, loss: Loss, share: float) -> Figures:
    """(1 - d) L(logits, labels) - d Σ_k p_k log S(logits)_k with the softmax S: cross entropy with labels and teachers.

    Args:
        logits: [B, K].
        labels: (the labels of L, the probabilities p of the teachers, [B, K]).
        loss: L, see `lowcost.train.losses`.
        share: d, from 0 to 1.

    Returns:
        The figures of L, with the new "loss".
    """
    true, probabilities = labels
    figures = loss(logits, true)
    soft = optax.softmax_cross_entropy(logits, probabilities)
    return {**figures, "loss": (1 - share) * figures["loss"] + share * soft}
