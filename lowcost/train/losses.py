"""Compares the outputs of a network with the labels, image by image.

A loss is a pure function (outputs [B, K] or [B, *grid, K], labels) → figures of each image, each [B] or [B, ...].
Training minimises the mean of "loss", or Σ weight · loss / Σ weight if there is "weight". The mean of "correct" is
reported as the accuracy, and the sum of "confusion" as the overlaps of classes, see `lowcost.train.overlap`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

Figures = dict[str, jax.Array]
Loss = Callable[[jax.Array, Any], Figures]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> Figures:
    """-Σ_k q_k log S(logits)_k with the softmax S and q = (1 - ε) e_label + ε / K: the loss of Section 2, where ε = 0.

    Args:
        logits: [B, K].
        labels: int32 [B], the class of each image.
        class_weights: the weight of an image by its class, [K]; None for equal ones. An image of weight 2 counts like
            two copies of it.
        smoothing: ε, the share of the target that is spread over all classes.

    Returns:
        {"loss", "correct"}, and "weight" if there are class weights. An image is correct, 1 and not 0, if its class has
        the largest logit.

    Raises:
        ValueError: another number of class weights than classes.
    """
    chex.assert_shape(labels, logits.shape[:1])
    if smoothing:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        loss = optax.softmax_cross_entropy(logits, targets)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    figures = {"loss": loss, "correct": (jnp.argmax(logits, axis=-1) == labels).astype(loss.dtype)}
    if class_weights is None:
        return figures
    if len(class_weights) != logits.shape[-1]:
        expected = f"class_weights must be {logits.shape[-1]} numbers, one per class"
        raise ValueError(f"{expected}, got {len(class_weights)}; pass one weight for each")
    # A sum, because JAX rejects the indexing by labels that are sharded along an Explicit axis.
    weights = jnp.asarray(class_weights, loss.dtype)[None] * jax.nn.one_hot(labels, logits.shape[-1], dtype=loss.dtype)
    return {**figures, "weight": weights.sum(-1)}


def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> Figures:
    """Σ_x w_x L_x / Σ_x w_x over the points x of an image that have a label, with L and w of `cross_entropy`.

    Args:
        logits: [B, *grid, K].
        labels: integers [B, *grid], the class of each point. Points with other numbers than 0 … K - 1 are ignored.
        class_weights: the weight of a point by its class, [K]; None for equal ones.
        smoothing: ε of `cross_entropy`.

    Returns:
        {"loss", "weight", "confusion"}: "weight" is Σ_x w_x, so that every point of a batch counts alike, and
        "confusion" [B, K, K] the numbers of points of class i for which class j has the largest logit.
    """
    chex.assert_shape(labels, logits.shape[:-1])
    classes = logits.shape[-1]

    def of_image(logits: jax.Array, labels: jax.Array) -> Figures:
        points, labels = logits.reshape(-1, classes), labels.reshape(-1).astype(jnp.int32)
        known = (labels >= 0) & (labels < classes)
        figures = cross_entropy(points, jnp.where(known, labels, 0), class_weights=class_weights, smoothing=smoothing)
        weights = jnp.where(known, figures.get("weight", jnp.ones_like(figures["loss"])), 0)
        total = weights.sum()
        true, predicted = (jax.nn.one_hot(x, classes) for x in (labels, jnp.argmax(points, axis=-1)))
        loss = (weights * figures["loss"]).sum() / jnp.where(total > 0, total, 1)
        return {"loss": loss, "weight": total, "confusion": true.T @ predicted}

    return jax.vmap(of_image)(logits, labels)


def pixel_figures(classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the figures of `pixel_cross_entropy` with the shapes of their sums, for `state.create_state`."""
    return {"loss": (), "weight": (), "confusion": (classes, classes)}


def binary_cross_entropy(logits: jax.Array, tags: jax.Array, *, smoothing: float = 0.0) -> Figures:
    """-(1/K) Σ_k q_k log s_k + (1 - q_k) log(1 - s_k) with s = sigmoid(logits) and q = (1 - ε) tags + ε / 2.

    Args:
        logits: [B, K].
        tags: [B, K], 1 where an image has the tag, else 0.
        smoothing: ε.

    Returns:
        {"loss", "correct"}; "correct" is the share of an image's tags that are right, with the threshold s > 1/2.
    """
    chex.assert_equal_shape([logits, tags])
    loss = optax.sigmoid_binary_cross_entropy(logits, (1 - smoothing) * tags + smoothing / 2).mean(axis=-1)
    right = ((logits > 0) == (tags > 0.5)).astype(loss.dtype).mean(axis=-1)
    return {"loss": loss, "correct": right}


def mixed(outputs: jax.Array, labels: tuple[Any, Any, jax.Array], *, loss: Loss) -> Figures:
    """λ L(outputs, labels) + (1 - λ) L(outputs, partners): the loss of images that are mixed of two.

    Args:
        outputs: [B, K].
        labels: (the labels of the first images, those of the second ones, and the shares λ of the first, [B]).
        loss: L, with a weight for each image or without.

    Returns:
        The figures of L, each averaged in this way; the loss by λ and the weights of both labels.
    """
    first, second, share = labels
    own, other = loss(outputs, first), loss(outputs, second)

    def mean(x: jax.Array, y: jax.Array) -> jax.Array:
        return share * x + (1 - share) * y

    figures = {name: mean(own[name], other[name]) for name in own}
    if "weight" in own:
        total = mean(own["weight"] * own["loss"], other["weight"] * other["loss"])
        figures["loss"] = total / jnp.where(figures["weight"] > 0, figures["weight"], 1)
    return figures


def squared_error(outputs: jax.Array, values: jax.Array) -> Figures:
    """(1/K) Σ_k (outputs_k - values_k)²: the loss of a regression.

    Args:
        outputs: [B, K].
        values: [B, K], standardised, so that no value outweighs the others.

    Returns:
        {"loss"}.
    """
    chex.assert_equal_shape([outputs, values])
    return {"loss": jnp.square(outputs - values).mean(axis=-1)}
