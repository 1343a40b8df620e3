"""Both ways of feeding give the requested rows, bit for bit, on any devices."""

import threading

import jax
import numpy as np
import pytest

from lowcost.data import batch_indices
from lowcost.train.feed import feed, fits_on_devices

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 6, 3), np.uint8)
LABELS = RNG.integers(0, 10, 30, np.int32)
MESHES = {n: jax.sharding.Mesh(jax.devices()[:n], ("data",)) for n in (1, 4)}


def rows(step):
    return batch_indices(0, step, len(LABELS), 8)


@pytest.fixture(params=[True, False], ids=["resident", "from the host"])
def resident(request):
    return request.param


def several(step):
    """Returns the rows of two seeds."""
    return np.stack([rows(step), batch_indices(1, step, len(LABELS), 8)])


@pytest.mark.parametrize("rows", [rows, several])
@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize(
    "calls", [[(0, 3), (3, 3), (6, 1)], [(5, 2), (7, 2)], [(3, 1), (9, 3), (4, 2), (4, 2), (0, 1)]], ids=str
)
def test_batches_are_their_rows(resident, devices, calls, rows):
    """Calls may cross epochs, begin in the middle, and come in any order, expected or not."""
    batches = feed(IMAGES, LABELS, rows, MESHES[devices], steps_max=3, resident=resident)
    for step, n in calls:
        arrays = batches(step, n, 1)
        for i in range(n):
            expected = rows(step + i)
            for array, values in zip(arrays, (IMAGES[expected], LABELS[expected], expected), strict=True):
                np.testing.assert_array_equal(array[i], values.astype(array.dtype), strict=True)
        for array in arrays:
            assert len(array) == 3
            shards = {shard.data.shape[rows(0).ndim] for shard in array.addressable_shards}
            assert (len(array.addressable_shards), shards) == (devices, {8 // devices})


def test_from_a_memory_map(resident, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = feed(images, LABELS, rows, MESHES[4], steps_max=1, resident=resident)
    np.testing.assert_array_equal(batches(2, 1, 0)[0][0], IMAGES[rows(2)])


def test_the_host_works_ahead():
    """While batches are used the next ones are made, in order, and none twice."""
    made, ahead = [], threading.Event()

    def noting(step):
        made.append(step)
        if step == 3:
            ahead.set()
        return rows(step)

    batches = feed(IMAGES, LABELS, noting, MESHES[1], steps_max=2, resident=False)
    batches(0, 2, 2)
    assert ahead.wait(10)
    batches(2, 2, 1)
    batches(4, 1, 0)
    assert made == list(range(5))


def test_an_error_on_the_way_is_raised():
    def failing(step):
        raise OSError(f"step {step} cannot be read")

    with pytest.raises(OSError, match="step 3 cannot be read"):
        feed(IMAGES, LABELS, failing, MESHES[1], steps_max=1, resident=False)(3, 1, 1)


def test_a_cpu_keeps_no_second_copy():
    assert not fits_on_devices(IMAGES, MESHES[4])


class Accelerator:
    """Reports its memory as a device does."""

    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


@pytest.mark.parametrize(
    ("stats", "expected"),
    [({"bytes_limit": 4 * IMAGES.nbytes}, True), ({"bytes_limit": 4 * IMAGES.nbytes - 1}, False), (None, False)],
)
def test_an_accelerator_keeps_what_fits(stats, expected):
    class Mesh:
        local_devices = (Accelerator(stats),)

    assert fits_on_devices(IMAGES, Mesh()) is expected
