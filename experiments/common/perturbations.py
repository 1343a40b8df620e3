"""Perturbs weights and images, and bounds by the layers' Lipschitz constants what that changes."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy.ndimage import gaussian_filter

from lowcost.nn import Network, stability_report
from lowcost.nn.stability import LayerBounds
from lowcost.nn.structure import bound_layers, chain

Variables = Mapping[str, Any]
"""{"params", "batch_stats"} of a network."""
Strengths = Mapping[str, Sequence[float]]
"""Kind of perturbation → its strengths."""


@partial(jax.jit, static_argnums=(0, 3))
def sensitivities(net: Network, variables: Variables, images: jax.Array, iterations: int = 20) -> jax.Array:
    """‖J‖₂ of the network's Jacobian J at each image, from below: by power iteration on JᵀJ from a random direction.

    Args:
        net: the network.
        variables: its weights and statistics.
        images: [N, *grid, C] as the network takes them.
        iterations: the number of products with JᵀJ.

    Returns:
        [N].
    """

    def of_image(image_and_start: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, start = image_and_start
        jacobian = jax.linearize(lambda x: net.apply(variables, x[None], train=False)[0], image)[1]
        transposed = jax.linear_transpose(jacobian, image)

        def iterate(_: int, u: jax.Array) -> jax.Array:
            (new,) = transposed(jacobian(u / jnp.linalg.norm(u)))
            return new

        u = jax.lax.fori_loop(0, iterations, iterate, start)
        return jnp.linalg.norm(jacobian(u / jnp.linalg.norm(u)))

    return jax.lax.map(of_image, (images, jax.random.normal(jax.random.key(0), images.shape)))


def perturbed_weights(params: Any, strengths: Strengths, seed: int) -> Iterator[tuple[str, float, Any]]:
    """Yields (kind, strength, weights): rounded to bfloat16, rounded to fewer bits, and with normal noise.

    Args:
        params: the weights.
        strengths: "bits", where each array is rounded to a uniform grid of 2^bits - 1 values up to its own largest
            value; "weight noise" in percent of each array's root mean square.
        seed: of the noise.
    """

    def rounded(w: jax.Array, bits: float) -> jax.Array:
        step = jnp.max(jnp.abs(w)) / (2 ** (bits - 1) - 1)
        return jnp.where(step > 0, jnp.round(w / jnp.where(step > 0, step, 1)) * step, w)

    yield "bfloat16", 16, jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params)
    for bits in strengths["bits"]:
        yield "bits", bits, jax.tree.map(partial(rounded, bits=bits), params)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.tree.unflatten(structure, list(jax.random.split(jax.random.key(seed), len(leaves))))
    noise = jax.tree.map(lambda w, key: jax.random.normal(key, w.shape) * jnp.sqrt(jnp.mean(w**2)), params, keys)
    for percent in strengths["weight noise"]:
        yield "weight noise", percent, jax.tree.map(lambda w, n, share=percent / 100: w + share * n, params, noise)


def perturbed_images(images: np.ndarray, strengths: Strengths, seed: int) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yields (kind, strength, images): with normal noise, clipped to [0, 1], and blurred by a Gaussian.

    Args:
        images: float32 [N, *grid, C] in [0, 1].
        strengths: standard deviations: "image noise" in grey levels, of 255; "blur" in pixels.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    for level in strengths["image noise"]:
        yield "image noise", level, np.clip(images + np.float32(level / 255) * noise, 0, 1)
    for pixels in strengths["blur"]:
        yield "blur", pixels, gaussian_filter(images, pixels, axes=range(1, images.ndim - 1))


def captured(net: Network, variables: Variables, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """Returns the output of each layer by its name; `train` normalises by the statistics of these images."""

    def of_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and len(module.path) == 1

    kinds = ["batch_stats", "intermediates"]
    _, kept = net.apply(variables, images, train=train, mutable=kinds, capture_intermediates=of_layer)
    return {name: calls["__call__"][0] for name, calls in kept["intermediates"].items() if "__call__" in calls}


def with_time_step(net: Network, h: float | jax.Array) -> Network:
    """Returns the same network with another time step."""
    return net.clone(step=partial(net.step, h=h))


_captured = jax.jit(captured, static_argnums=0)


def features(net: Network, variables: Variables, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the output of each layer for images in [0, 1], in order; the last is "classifier", the logits."""
    outputs = _captured(net, variables, images)
    order = [layer.name for layer in bound_layers(net, variables, images.shape[1:])]
    return {name: np.asarray(outputs[name], np.float32) for name in order}


def weights_bound(net: Network, perturbed: Variables, images: np.ndarray, clean: dict[str, np.ndarray]) -> np.ndarray:
    """Returns Σ_k ‖f'_k(y_k) - f_k(y_k)‖ Π_{j>k} L'_j for each image; where a decoder adds features, sums are added.

    Args:
        net: the network.
        perturbed: its perturbed variables.
        images: in [0, 1].
        clean: the outputs of its layers with the unperturbed ones, see `features`.
    """
    outputs = _single_layers(net, perturbed, images, clean)

    def apply(bounds: LayerBounds, total: np.ndarray) -> np.ndarray:
        return bounds.lipschitz * total + norms(outputs[bounds.name] - clean[bounds.name])

    layers = stability_report(net, perturbed, images.shape[1:]).layers
    return chain(layers, np.zeros(len(images)), apply, np.add)


@partial(jax.jit, static_argnums=0)
def _single_layers(net, perturbed, images, clean):
    """Returns f'_k(y_k) by the layer's name."""
    outputs = {}

    def apply(layer, y):
        takes_train = "train" in inspect.signature(type(layer.module).__call__).parameters
        outputs[layer.name] = layer.module(y, **({"train": False} if takes_train else {}))
        return clean[layer.name]

    chain(bound_layers(net, perturbed, images.shape[1:]), images, apply, jnp.add)
    return outputs


def norms(x: Any) -> np.ndarray:
    """Returns ‖x_b‖ of each image."""
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=tuple(range(1, x.ndim))))
