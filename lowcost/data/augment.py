"""Random changes of a batch that keep its labels: pure functions of a key and float images [B, H, W, C].

Every image draws for itself from a counter-based generator: what happens to image i depends on the key and i alone,
not on the other images nor on how many devices share the batch.
"""

import jax
import jax.numpy as jnp


def random_resized_crop(key: jax.Array, images: jax.Array, *, low: float = 0.8, high: float = 1.2) -> jax.Array:
    """image(t + s·x) for x in the image plane: a window of side s, s ~ U(low, high), at a random place t.

    Each image shows a window of s·H x s·W of its own, resized bilinearly to H x W. A window with s ≤ 1 lies anywhere
    inside the image; one with s > 1 lies anywhere around it and is zero outside. low = high = 1 is the identity.

    Args:
        key: random key.
        images: [B, H, W, C], floating point.
        low: smallest window, as a fraction of the image's side, > 0; a Python number, as is high.
        high: largest window, ≥ low.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank or dtype, or not 0 < low ≤ high.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"random_resized_crop: expected floating-point images [B, H, W, C], got {images.dtype} {images.shape}"
        )
    if not 0 < low <= high:
        raise ValueError(f"random_resized_crop: expected 0 < low ≤ high, got low={low} and high={high}")
    size_key, place_key = jax.random.split(key)
    sizes = jax.random.uniform(size_key, images.shape[:1], jnp.float32, low, high)
    places = jax.random.uniform(place_key, (images.shape[0], 2), jnp.float32)
    grid = jnp.asarray(images.shape[1:3], jnp.float32)

    def crop(image: jax.Array, s: jax.Array, place: jax.Array) -> jax.Array:
        # scale_and_translate puts input point p at p·scale + translation; the window's corner t must come to 0. The
        # one formula for t serves both cases: the free room (1 − s)·grid is negative where the window is the larger.
        t = place * (1 - s) * grid
        # A resize that is separable: two small matrix products an image, and no gather.
        return jax.image.scale_and_translate(image, image.shape, (0, 1), jnp.full(2, 1 / s), -t / s, "linear")

    return jax.vmap(crop)(images, sizes, places)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """image(y, −x) with probability 1/2 for each image by itself, else image(y, x): a left-right mirror.

    Args:
        key: random key.
        images: [B, H, W, C], any dtype.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank.
    """
    if images.ndim != 4:
        raise ValueError(f"random_flip: expected images [B, H, W, C], got {images.shape}")
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
