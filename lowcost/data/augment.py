"""Augmentation: random changes of a batch as pure functions of a key and images [B, H, W, C]. Labels do not change.

The random numbers of image i depend on the key and on i alone, the index in the batch or, for `alternating_flip`, in
the data set. They depend neither on the other images nor on the number of devices. No function gathers: images move by
slices, selections and small matrix products.
"""

import jax
import jax.numpy as jnp


def random_resized_crop(key: jax.Array, images: jax.Array, *, low: float = 0.8, high: float = 1.2) -> jax.Array:
    """image(t + s·x) for x in the image plane: a window of side s, s ~ U(low, high), at a random corner t.

    Each image has its own window of s·H x s·W, which is resized bilinearly to H x W. A window with s ≤ 1 lies inside
    the image; one with s > 1 contains it and is zero outside. low = high = 1 is the identity.

    Args:
        key: random key.
        images: [B, H, W, C], floating point.
        low: smallest window, as a fraction of the image's side, > 0; a Python number, like high.
        high: largest window, ≥ low.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank or dtype, or not 0 < low ≤ high.
    """
    _check_images("random_resized_crop", images, floating=True)
    if not 0 < low <= high:
        raise ValueError(f"random_resized_crop: low and high must be 0 < low ≤ high, got low={low} and high={high}")
    size_key, place_key = jax.random.split(key)
    sizes = jax.random.uniform(size_key, images.shape[:1], jnp.float32, low, high)
    places = jax.random.uniform(place_key, (images.shape[0], 2), jnp.float32)
    grid = jnp.asarray(images.shape[1:3], jnp.float32)

    def crop(image: jax.Array, s: jax.Array, place: jax.Array) -> jax.Array:
        # scale_and_translate moves point p to p·scale + translation, and the window's corner t must move to 0. The
        # formula for t holds for larger windows too, where (1 − s)·grid is negative.
        t = place * (1 - s) * grid
        # This resize is separable: two small matrix products per image, and no gather.
        return jax.image.scale_and_translate(image, image.shape, (0, 1), jnp.full(2, 1 / s), -t / s, "linear")

    return jax.vmap(crop)(images, sizes, places)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """image(y, −x) with probability 1/2, independently for each image, else image(y, x).

    Args:
        key: random key.
        images: [B, H, W, C], any dtype.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank.
    """
    _check_images("random_flip", images)
    return _mirror(images, jax.random.bernoulli(key, shape=images.shape[:1]))


def alternating_flip(key: jax.Array, images: jax.Array, indices: jax.Array, epoch: int | jax.Array) -> jax.Array:
    """image(y, −x) in every second epoch, else image(y, x): two successive epochs show both versions of each image.

    A fair random bit, which depends on (key, index in the data set) alone, chooses the version of epoch 0. With
    `random_flip`, half of the images repeat their version. Source: Jordan, 94% on CIFAR-10 in 3.29 seconds on a single
    GPU (2024).

    Args:
        key: random key, the same in all epochs; a key that changes with the step would give `random_flip`.
        images: [B, H, W, C], any dtype.
        indices: integers [B], the images' indices in the data set.
        epoch: integer.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank, or the indices are not B integers.
    """
    _check_images("alternating_flip", images)
    if indices.shape != images.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
        expected = f"alternating_flip: indices must be integers [{len(images)}], one for each image"
        raise ValueError(f"{expected}, got {indices.dtype} {indices.shape}")
    bits = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(indices)
    return _mirror(images, bits ^ (epoch % 2 == 1))


def random_translate(key: jax.Array, images: jax.Array, *, pixels: int = 2) -> jax.Array:
    """image(y + dy, x + dx), dy and dx uniform over −pixels … pixels; reflected at the border.

    The reflection does not repeat the border pixel: NumPy's pad mode "reflect".

    Args:
        key: random key.
        images: [B, H, W, C], any dtype.
        pixels: the largest shift, less than H and W; 0 is the identity.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank, or not 0 ≤ pixels < min(H, W).
    """
    _check_images("random_translate", images)
    _check_pixels("random_translate", pixels, min(images.shape[1:3]) - 1)
    starts = jax.random.randint(key, (len(images), 2, 1, 1, 1), 0, 2 * pixels + 1)
    for axis in (1, 2):
        padded = jnp.pad(images, [(pixels, pixels) if a == axis else (0, 0) for a in range(4)], mode="reflect")
        n = images.shape[axis]
        windows = [jax.lax.slice_in_dim(padded, shift, shift + n, axis=axis) for shift in range(2 * pixels + 1)]
        # A selection among few shifts is elementwise; one slice position per image would be a gather.
        images = jax.lax.select_n(jnp.broadcast_to(starts[:, axis - 1], images.shape), *windows)
    return images


def cutout(key: jax.Array, images: jax.Array, *, pixels: int) -> jax.Array:
    """0 in a square of pixels x pixels, centred at a random pixel and cut off at the border; else the image.

    An even square extends one pixel less down and to the right of the centre than up and to the left. Zero is black in
    images from 0 to 1, and the mean colour after the mean has been subtracted.

    Args:
        key: random key.
        images: [B, H, W, C], any dtype.
        pixels: side of the square, at most H and W; 0 is the identity.

    Returns:
        Images shaped as the input.

    Raises:
        ValueError: the images have another rank, or not 0 ≤ pixels ≤ min(H, W).
    """
    _check_images("cutout", images)
    grid = images.shape[1:3]
    _check_pixels("cutout", pixels, min(grid))
    centres = jax.random.randint(key, (len(images), 2), 0, jnp.asarray([grid]))

    def inside(axis: int) -> jax.Array:
        offsets = jnp.arange(grid[axis])[None] - centres[:, axis, None] + pixels // 2
        return (offsets >= 0) & (offsets < pixels)

    hole = inside(0)[:, :, None, None] & inside(1)[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def _mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _check_images(name: str, images: jax.Array, *, floating: bool = False) -> None:
    if images.ndim != 4 or (floating and not jnp.issubdtype(images.dtype, jnp.floating)):
        kind = "floating-point" if floating else "arrays"
        raise ValueError(f"{name}: images must be {kind} [B, H, W, C], got {images.dtype} {images.shape}")


def _check_pixels(name: str, pixels: int, pixels_max: int) -> None:
    if pixels not in range(pixels_max + 1):
        raise ValueError(f"{name}: pixels must be 0 to {pixels_max} for images of this size, got {pixels}")
