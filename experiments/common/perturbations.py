"""Small changes of weights and images, and what the bounds of the layers say of them."""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from lowcost.nn.networks import bound_layers
from lowcost.nn.stability import stability_report


def disturbed_weights(
    params: Any, bits: Sequence[int], percents: Sequence[float], seed: int
) -> Iterator[tuple[str, float, Any]]:
    """(kind, strength, weights): rounded to bfloat16 and to so many bits, and with normal noise.

    Args:
        params: the weights.
        bits: each array has a uniform grid of 2^bits - 1 values, up to its own largest.
        percents: noise of each array's root mean square.
        seed: of the noise.
    """

    def rounded(w: jax.Array, bits: int) -> jax.Array:
        step = jnp.max(jnp.abs(w)) / (2 ** (bits - 1) - 1)
        return jnp.where(step > 0, jnp.round(w / jnp.where(step > 0, step, 1)) * step, w)

    yield "bfloat16", 16, jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params)
    for b in bits:
        yield "bits", b, jax.tree.map(lambda w, b=b: rounded(w, b), params)
    leaves, structure = jax.tree.flatten(params)
    noise = [
        jax.random.normal(key, w.shape) * jnp.sqrt(jnp.mean(w**2))
        for key, w in zip(jax.random.split(jax.random.key(seed), len(leaves)), leaves, strict=True)
    ]
    for percent in percents:
        noisy = [w + percent / 100 * n for w, n in zip(leaves, noise, strict=True)]
        yield "weight noise", percent, jax.tree.unflatten(structure, noisy)


def disturbed_images(
    images: Any, levels: Sequence[float], sigmas: Sequence[float], seed: int
) -> Iterator[tuple[str, float, Any]]:
    """(kind, strength, images): with normal noise, clipped to [0, 1], and blurred by a Gaussian.

    Args:
        images: float32 [N, *grid, C] in [0, 1].
        levels: standard deviations in grey levels, of 255.
        sigmas: standard deviations in pixels.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    for level in levels:
        yield "image noise", level, np.clip(images + np.float32(level / 255) * noise, 0, 1)
    for pixels in sigmas:
        sigma = (0, *(pixels,) * (images.ndim - 2), 0)
        yield "blur", pixels, gaussian_filter(images, sigma, mode="reflect")


def features(net: Any, variables: Any, images: Any) -> dict[str, Any]:
    """What comes out of each layer for images in [0, 1], in order; the last is "classifier", the logits."""
    kept = _captured(net, variables, images)
    order = [layer.name for layer in bound_layers(net, variables, images.shape[1:])]
    return {name: np.asarray(kept[name]["__call__"][0], np.float32) for name in order}


@partial(jax.jit, static_argnums=0)
def _captured(net, variables, images):
    _, kept = net.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: method == "__call__" and len(module.path) == 1,
    )
    return kept["intermediates"]


def weights_bound(net: Any, disturbed: Any, images: Any, clean: dict[str, Any]) -> Any:
    """Σ_k ‖f'_k(y_k) - f_k(y_k)‖ Π_{j>k} L'_j for each image.

    Args:
        net: the network; disturbed: its other variables.
        images: in [0, 1]; clean: what comes out of each layer as it was.
    """
    total, there = np.zeros(len(images)), _each_alone(net, disturbed, images, clean)
    for bounds in stability_report(net, disturbed, images.shape[1:]).layers:
        total = bounds.lipschitz * total + norms(there[bounds.name] - clean[bounds.name])
    return total


@partial(jax.jit, static_argnums=0)
def _each_alone(net, disturbed, images, clean):
    """f'_k(y_k) by the layer's name."""
    y, there = images, {}
    for layer in bound_layers(net, disturbed, images.shape[1:]):
        takes_train = "train" in inspect.signature(type(layer.module).__call__).parameters
        there[layer.name] = layer.module(y, **({"train": False} if takes_train else {}))
        y = clean[layer.name]
    return there


def norms(x: Any) -> Any:
    """‖x_b‖ of each image."""
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=tuple(range(1, x.ndim))))
