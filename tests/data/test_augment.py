"""Tests random changes of a batch: each image changes independently, as often as stated, on any devices."""

import re
from collections import Counter
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from lowcost.data.augment import (
    alternating_flip,
    cutmix,
    cutout,
    jitter,
    random_flip,
    random_resized_crop,
    random_scale,
    random_translate,
)

crop = jax.jit(random_resized_crop, static_argnames=("low", "high"))
flip = jax.jit(random_flip)
alternate = jax.jit(alternating_flip)
translate = jax.jit(random_translate, static_argnames="pixels")
cut = jax.jit(cutout, static_argnames="pixels")
scale = jax.jit(random_scale, static_argnames="spread")
noise = jax.jit(jitter, static_argnames="deviation")
mix = jax.jit(cutmix, static_argnames="probability")
GRIDS = pytest.mark.parametrize("grid", [(9,), (5, 7), (4, 3, 5)], ids=str)


@jax.jit
def cut_4(key, images):
    return cutout(key, images, pixels=4)


@jax.jit
def alternate_in_order(key, images):
    return alternating_flip(key, images, jnp.arange(len(images)), 3)


SELECTING = [flip, alternate_in_order, translate, cut_4]
EVERY = pytest.mark.parametrize("augment", [crop, scale, noise, *SELECTING], ids=lambda augment: augment.__name__)


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(0), (12, 12, 10, 3))


def assert_drawn(images, outcomes):
    """Asserts that each image is one of the outcomes, sampled as often as it is listed among them.

    All of them occur, and the p-value of the χ² test is above 1e-6.
    """
    expected, counts = Counter(map(np.ndarray.tobytes, outcomes)), Counter(map(np.ndarray.tobytes, images))
    assert counts.keys() == expected.keys()
    if len(expected) > 1:
        frequencies = [len(images) * times / len(outcomes) for times in expected.values()]
        assert stats.chisquare([counts[each] for each in expected], frequencies).pvalue > 1e-6


def test_a_window_as_large_as_the_image_is_the_identity(key, images):
    np.testing.assert_allclose(crop(key, images, low=1, high=1), images, atol=1e-6)


@pytest.mark.parametrize("s", [0.5, 0.8, 1.25])
def test_a_window_shows_the_image_magnified(key, s):
    """On the ramps y and x a window reads t + s·(i + ½), with the corner t uniform over all possible positions."""
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


def test_two_successive_epochs_show_both_versions(key, images):
    indices = jnp.asarray([5, 3, 2**31 - 1, 0, 49_999, 7, 1, 2, 4, 9, 6, 8])
    epochs = [np.asarray(alternate(key, images, indices, epoch)) for epoch in range(5)]
    plain, mirror = np.asarray(images), np.asarray(images)[:, :, ::-1]
    for now, then in pairwise(epochs):
        for i in range(12):
            assert {now[i].tobytes(), then[i].tobytes()} == {plain[i].tobytes(), mirror[i].tobytes()}


def test_the_alternating_bit_belongs_to_the_index(key):
    """The bit is fair over the indices, independent between keys, and the same at any position in the batch."""
    ramp = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 1, 6, 1), (4000, 1, 6, 1))
    indices = np.arange(4000)

    def bits(key, indices):
        return np.asarray(alternate(key, ramp, indices, 0))[:, 0, 0, 0] > 0

    mirrored, others = bits(key, indices), bits(jax.random.key(8), indices)
    shuffled = np.random.default_rng(0).permutation(indices)
    np.testing.assert_array_equal(bits(key, shuffled), mirrored[shuffled])
    for pairs in ((mirrored, others), (mirrored[::2], mirrored[1::2])):
        assert_drawn(np.stack(pairs, 1), np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool))


@pytest.mark.parametrize("pixels", [0, 2])
def test_a_translation_is_a_window_of_the_reflected_image(key, pixels):
    """The result is one of the (2·pixels + 1)² windows that NumPy cuts, each equally often."""
    image = np.random.default_rng(0).random((3, 7, 2), np.float32)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    starts = range(2 * pixels + 1)
    windows = [padded[y : y + 3, x : x + 7] for y in starts for x in starts]
    assert_drawn(np.asarray(translate(key, jnp.broadcast_to(image, (4000, 3, 7, 2)), pixels=pixels)), windows)


@pytest.mark.parametrize("pixels", [0, 4, 5])
def test_cutout_is_black_in_a_square_that_the_border_may_clip(key, pixels):
    """The square is centred at one of the 5 x 7 pixels, each equally often."""
    image = 1 + np.random.default_rng(0).random((5, 7, 2), np.float32)
    outcomes = []
    for y, x in np.ndindex(5, 7):
        framed = np.pad(image, ((5, 5), (5, 5), (0, 0)))
        top, left = 5 + y - pixels // 2, 5 + x - pixels // 2
        framed[top : top + pixels, left : left + pixels] = 0
        outcomes.append(framed[5:10, 5:12])
    assert_drawn(np.asarray(cut(key, jnp.broadcast_to(image, (4000, 5, 7, 2)), pixels=pixels)), outcomes)


@GRIDS
def test_a_window_of_any_grid(grid, key):
    """On the ramp of each axis a window reads t + s·(i + ½), with one s for all axes; s = 1 is the identity."""
    ramps = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in grid), indexing="ij"), -1).astype(np.float32)
    ramps = np.broadcast_to(ramps, (50, *ramps.shape))
    np.testing.assert_allclose(crop(key, ramps, low=1, high=1), ramps, atol=1e-5)
    windows = np.asarray(crop(key, ramps, low=0.5, high=0.9))
    steps = [
        np.diff(np.moveaxis(windows[..., axis], axis + 1, -1)[..., 1:-1], axis=-1).reshape(50, -1)
        for axis in range(len(grid))
        if grid[axis] > 3
    ]
    s = np.median(steps[0], axis=1, keepdims=True)
    assert ((s >= 0.5) & (s <= 0.9)).all()
    assert len(np.unique(s)) == 50
    for along in steps:
        np.testing.assert_allclose(along, np.broadcast_to(s, along.shape), atol=1e-4)


def test_a_window_begins_in_the_extent(key):
    """A signal of 10 points in 40 loses (1 − s)·10 points at most, and all of it is inside a larger window."""
    ramp = np.where(np.arange(40) < 10, np.arange(40) + 0.5, 0).astype(np.float32)
    signals, extent = np.broadcast_to(ramp[:, None], (500, 40, 1)), np.full((500, 1), 10)
    starts = np.asarray(crop(key, signals, low=0.5, high=0.5, extent=extent))[:, 2:5, 0].mean(1) - 0.5 * 3.5
    assert -0.02 <= starts.min() < 0.3
    assert 4.7 < starts.max() <= 5.02
    mask = np.broadcast_to((np.arange(40) < 10).astype(np.float32)[:, None], (500, 40, 1))
    larger = np.asarray(crop(key, mask, low=1.25, high=1.25, extent=extent))
    np.testing.assert_allclose(larger.sum((1, 2)), 8, atol=0.5)
    assert larger[:, 11:].max() < 1e-6


@GRIDS
def test_the_last_axis_of_any_grid_is_mirrored(grid, key):
    images = np.random.default_rng(0).random((40, *grid, 2), np.float32)
    mirror = images[..., ::-1, :]
    for changed in (flip(key, images), alternate(key, images, np.arange(40), 0)):
        kinds = [tuple(np.array_equal(c, x) for x in pair) for c, *pair in zip(changed, images, mirror, strict=True)]
        assert set(kinds) == {(True, False), (False, True)}


@GRIDS
def test_a_translation_of_any_grid(grid, key):
    """The result is one of the windows that NumPy cuts out of the reflected image, each equally often."""
    image = np.random.default_rng(0).random((*grid, 2), np.float32)
    padded = np.pad(image, [*[(1, 1)] * len(grid), (0, 0)], mode="reflect")
    windows = [padded[tuple(map(slice, start, np.add(start, grid)))] for start in np.ndindex((3,) * len(grid))]
    assert_drawn(np.asarray(translate(key, np.broadcast_to(image, (6000, *image.shape)), pixels=1)), windows)


@GRIDS
@pytest.mark.parametrize("pixels", [2, 3])
def test_cutout_hides_a_cube_of_any_grid(grid, pixels, key):
    image = 1 + np.random.default_rng(0).random((*grid, 2), np.float32)
    outcomes = []
    for centre in np.ndindex(*grid):
        hidden = image.copy()
        hidden[tuple(slice(max(0, c - pixels // 2), c - pixels // 2 + pixels) for c in centre)] = 0
        outcomes.append(hidden)
    assert_drawn(np.asarray(cut(key, np.broadcast_to(image, (6000, *image.shape)), pixels=pixels)), outcomes)


@GRIDS
def test_a_box_is_that_of_the_next_image(grid, key):
    """Each image gets a box of the next, and the last a box of the first; the share counts the points outside."""
    images = np.arange(2 * 600 * np.prod(grid), dtype=np.float32).reshape(600, *grid, 2)
    mixed, shares = mix(key, images)
    inside = (mixed == np.roll(images, -1, 0)).all(-1)
    np.testing.assert_array_equal(np.where(inside[..., None], np.roll(images, -1, 0), images), mixed)
    np.testing.assert_allclose(shares, 1 - inside.reshape(600, -1).mean(1), rtol=1e-6)
    box = np.ones(inside.shape, bool)
    for axis in range(1, inside.ndim):
        others = tuple(a for a in range(1, inside.ndim) if a != axis)
        along = inside.any(others, keepdims=True)
        assert (np.diff(along, axis=axis).sum(axis) <= 2).all()
        box &= along
    np.testing.assert_array_equal(box, inside)


def test_boxes_have_all_sizes_and_the_wanted_frequency(key):
    """The share of a box is uniform before the border cuts it off, and its centre is uniform."""
    images, rng = jnp.zeros((4000, 40, 40, 1)), np.random.default_rng(0)
    side, centre = rng.uniform(size=4000) ** 0.5, rng.uniform(size=(2, 4000))
    length = (centre + side / 2).clip(max=1) - (centre - side / 2).clip(min=0)
    assert stats.ks_2samp(mix(key, images)[1], 1 - length.prod(0)).pvalue > 1e-6
    np.testing.assert_allclose(np.mean(mix(key, images, probability=0.25)[1] < 1), 0.25, atol=0.03)
    np.testing.assert_array_equal(mix(key, images, probability=0)[1], 1)
    with jax.numpy_dtype_promotion("strict"):  # as some users set
        jax.eval_shape(cutmix, key, images)
    with pytest.raises(ValueError, match=r"cutmix: probability must be from 0 to 1, got 1\.5"):
        cutmix(key, images, probability=1.5)


@GRIDS
def test_scales_and_noise_are_normal(grid, key):
    """The logarithm of each image's one factor is normal; noise is independent at each point. Zero is the identity."""
    images = 1 + np.random.default_rng(0).random((2000, *grid, 2), np.float32)
    logarithms = np.log(np.asarray(scale(key, images, spread=0.3)) / images).reshape(2000, -1)
    np.testing.assert_allclose(np.ptp(logarithms, axis=1), 0, atol=1e-5)
    assert stats.kstest(logarithms[:, 0] / 0.3, "norm").pvalue > 1e-6
    added = (np.asarray(noise(key, images, deviation=0.3)) - images).ravel()[:20_000]
    assert stats.kstest(added / 0.3, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(added[1:], added[:-1])[0, 1]) < 0.04
    np.testing.assert_array_equal(scale(key, images, spread=0), images)
    np.testing.assert_array_equal(noise(key, images, deviation=0), images)


@EVERY
def test_every_image_goes_its_own_way(augment, key, images):
    """Twelve copies of one image change in different ways; the content and number of the others have no effect."""
    same = jnp.broadcast_to(images[:1], images.shape)
    change = np.asarray(augment(key, same) - same)
    assert len({each.tobytes() for each in change}) > 1
    others = images.at[3:].set(0)
    np.testing.assert_array_equal(augment(key, images)[:3], augment(key, others)[:3])
    np.testing.assert_allclose(augment(key, images)[:3], augment(key, images[:3]), atol=1e-6)


@EVERY
def test_keys_decide(augment, key, images):
    np.testing.assert_array_equal(augment(key, images), augment(key, images))
    assert (augment(key, images) != augment(jax.random.key(8), images)).any()


def test_where_pixels_are_computed_the_dtype_is_kept(key, images):
    for dtype in (jnp.float32, jnp.bfloat16):
        result = crop(key, images.astype(dtype))
        assert (result.shape, result.dtype) == (images.shape, dtype)


@pytest.mark.parametrize("augment", SELECTING, ids=lambda augment: augment.__name__)
def test_where_pixels_are_only_selected_bytes_do(augment, key, images):
    """The function applied to uint8 and to the same values in float32 gives equal values."""
    grey = jnp.round(255 * images)
    result = augment(key, grey.astype(jnp.uint8))
    assert (result.shape, result.dtype) == (images.shape, jnp.uint8)
    np.testing.assert_array_equal(augment(key, grey), result.astype(jnp.float32), strict=True)


@pytest.mark.parametrize(
    "augment", [crop, flip, alternate, translate, cut_4, scale, noise], ids=lambda augment: augment.__name__
)
def test_sharding_changes_no_bit(augment, key, images):
    """Four devices give the bits of one device without communication; results without `jit` agree to 1e-5."""
    others = (np.arange(12), 3) if augment is alternate else ()
    along_batch = NamedSharding(Mesh(jax.devices()[:4], "batch"), PartitionSpec("batch"))
    placed = [jax.device_put(x, along_batch) if np.ndim(x) else x for x in (images, *others)]
    compiled = augment.lower(key, *placed).compile()
    shared, alone, eager = (
        jax.tree.leaves(function(key, *arguments))
        for function, arguments in (
            (compiled, placed),
            (augment, (images, *others)),
            (augment.__wrapped__, (images, *others)),
        )
    )
    for ours, theirs, uncompiled in zip(shared, alone, eager, strict=True):
        assert ours.sharding.is_equivalent_to(along_batch, ours.ndim)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(uncompiled, theirs, atol=1e-5)
    sent = re.findall(r"= (.+?)(?:\{\S*)? (?:all|collective|reduce-scatter|ragged)[\w-]*\(", compiled.as_text())
    assert sent == []


def test_what_is_refused(key, images):
    with pytest.raises(ValueError, match=r"_crop: images must be floating-point .* got uint8 \(12, 12, 10, 3\)"):
        random_resized_crop(key, images.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"random_resized_crop: .* got float32 \(10, 3\)"):
        random_resized_crop(key, images[0, 0])
    for name, function in {
        "random_flip": random_flip,
        "alternating_flip": partial(alternating_flip, indices=jnp.arange(12), epoch=0),
        "random_translate": random_translate,
        "cutout": partial(cutout, pixels=4),
        "cutmix": cutmix,
    }.items():
        expected = rf"{name}: images must be arrays \[B, \*grid, C\] with 1 to 3 grid axes"
        for wrong in (images[0, 0], images[None, None]):
            with pytest.raises(ValueError, match=rf"{expected}, got float32 \({wrong.shape[0]}, "):
                function(key, wrong)
    for function in (random_scale, jitter):
        with pytest.raises(ValueError, match=r"images must be floating-point .* got uint8 \(12, 12, 10, 3\)"):
            function(key, images.astype(jnp.uint8))
    with pytest.raises(ValueError, match="random_scale: spread must be at least 0, got -1"):
        random_scale(key, images, spread=-1)
    with pytest.raises(ValueError, match="jitter: deviation must be at least 0, got nan"):
        jitter(key, images, deviation=float("nan"))
    with pytest.raises(ValueError, match=r"0 < low ≤ high, got low=1\.1 and high=1\.0"):
        random_resized_crop(key, images, low=1.1, high=1.0)
    for indices in (jnp.arange(7), jnp.arange(12.0), jnp.zeros((12, 1), int)):
        with pytest.raises(ValueError, match=r"alternating_flip: indices must be integers \[12\], .* got .*32 \("):
            alternating_flip(key, images, indices, 0)
    for pixels in (-1, 10, 1.5):
        with pytest.raises(ValueError, match=rf"random_translate: pixels must be 0 to 9 .* got {pixels}"):
            random_translate(key, images, pixels=pixels)
    for pixels in (-1, 11, 1.5):
        with pytest.raises(ValueError, match=rf"cutout: pixels must be 0 to 10 .* got {pixels}"):
            cutout(key, images, pixels=pixels)
