"""Random crops and mirrors: each image by itself, in expectation where it was, whatever the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowcost.data import random_flip, random_resized_crop

crop = jax.jit(random_resized_crop, static_argnames=("low", "high"))
flip = jax.jit(random_flip)
BOTH = pytest.mark.parametrize("augment", [crop, flip])


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(0), (8, 12, 10, 3))


def test_a_window_as_large_as_the_image_is_the_identity(key, images):
    np.testing.assert_allclose(crop(key, images, low=1, high=1), images, atol=1e-6)


@pytest.mark.parametrize("s", [0.5, 0.8, 1.25])
def test_a_window_shows_the_image_magnified(key, s):
    """On the ramps y and x it reads t + s·(i + ½), with the corner t uniform over the room the window has."""
    y, x = jnp.meshgrid(jnp.arange(16) + 0.5, jnp.arange(24) + 0.5, indexing="ij")
    ramps = jnp.broadcast_to(jnp.stack([y, x], -1), (500, 16, 24, 2))
    windows = np.asarray(crop(key, ramps, low=s, high=s))
    for middle, size in ((windows[:, 6:10, 12, 0], 16), (windows[:, 8, 10:14, 1], 24)):
        # The antialiasing of a reduced image bends a ramp a little.
        np.testing.assert_allclose(np.diff(middle), s, atol=1e-4 if s <= 1 else 0.1)
        t, room = middle.mean(1) - s * size / 2, (1 - s) * size
        assert min(0, room) - 0.02 <= t.min()
        assert t.max() <= max(0, room) + 0.02
        np.testing.assert_allclose(t.mean(), room / 2, atol=4 * abs(room) / np.sqrt(12 * 500))
        np.testing.assert_allclose(t.std(), abs(room) / np.sqrt(12), rtol=0.15)


def test_the_outside_is_black(key):
    """A window of twice the side shows the white image on a quarter of its area."""
    shown = crop(key, jnp.ones((100, 16, 16, 1)), low=2, high=2)
    assert ((shown >= 0) & (shown <= 1 + 1e-6)).all()
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), 0.25, atol=0.04)


def test_half_of_the_images_are_mirrored(key):
    images = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 1, 6, 1), (4000, 2, 6, 1))
    flipped = np.asarray(flip(key, images))
    mirrored = flipped[:, 0, 0, 0] > 0
    np.testing.assert_array_equal(flipped[mirrored], images[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


@BOTH
def test_every_image_goes_its_own_way(augment, key, images):
    """The same picture eight times comes out in different ways; what the others are, and how many, changes nothing."""
    same = jnp.broadcast_to(images[:1], images.shape)
    assert len({np.asarray(image).tobytes() for image in augment(key, same)}) > 1
    others = images.at[3:].set(0)
    np.testing.assert_array_equal(augment(key, images)[:3], augment(key, others)[:3])
    np.testing.assert_allclose(augment(key, images)[:3], augment(key, images[:3]), atol=1e-6)


@BOTH
def test_keys_decide(augment, key, images):
    np.testing.assert_array_equal(augment(key, images), augment(key, images))
    assert (augment(key, images) != augment(jax.random.key(8), images)).any()


@BOTH
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_are_kept(augment, key, images, dtype):
    result = augment(key, images.astype(dtype))
    assert (result.shape, result.dtype) == (images.shape, dtype)


@BOTH
def test_sharding_changes_no_bit(augment, key, images):
    """On four devices as on one; and compiled as not, up to rounding."""
    alone = augment(key, images)
    mesh = Mesh(jax.devices()[:4], "batch")
    sharded = augment(key, jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch"))))
    assert len(sharded.sharding.device_set) == mesh.size
    np.testing.assert_array_equal(sharded, alone)
    np.testing.assert_allclose(augment.__wrapped__(key, images), alone, atol=1e-5)


def test_what_is_refused(key, images):
    with pytest.raises(ValueError, match=r"random_resized_crop: .* got uint8 \(8, 12, 10, 3\)"):
        random_resized_crop(key, images.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"random_resized_crop: .* got float32 \(12, 10, 3\)"):
        random_resized_crop(key, images[0])
    with pytest.raises(ValueError, match=r"0 < low ≤ high, got low=1\.1 and high=1\.0"):
        random_resized_crop(key, images, low=1.1, high=1.0)
    with pytest.raises(ValueError, match=r"random_flip: expected images \[B, H, W, C\], got \(12, 10, 3\)"):
        random_flip(key, images[0])
