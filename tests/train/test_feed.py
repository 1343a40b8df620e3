"""Both ways of feeding give the rows that were asked for, bit for bit, wherever they go."""

import threading

import jax
import numpy as np
import pytest

from lowcost.data import batch_indices
from lowcost.train.feed import AHEAD, feed, fits

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 6, 3), np.uint8)
LABELS = RNG.integers(0, 10, 30, np.int32)
MESHES = {n: jax.sharding.Mesh(jax.devices()[:n], ("data",)) for n in (1, 4)}


def rows(step):
    return batch_indices(0, step, len(LABELS), 8)


@pytest.fixture(params=[True, False], ids=["resident", "from the host"])
def resident(request):
    return request.param


@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("steps", [range(7), [5, 6, 7], [3, 9, 4, 4, 0]], ids=["all", "resumed", "any order"])
def test_a_batch_is_its_rows(resident, devices, steps):
    """Over the borders of epochs, from the middle, and in any order."""
    batch = feed(IMAGES, LABELS, rows, MESHES[devices], resident=resident)
    for step in steps:
        images, labels = batch(step)
        np.testing.assert_array_equal(images, IMAGES[rows(step)], strict=True)
        np.testing.assert_array_equal(labels, LABELS[rows(step)], strict=True)
        assert len(images.addressable_shards) == devices
        assert {shard.data.shape[0] for shard in images.addressable_shards} == {8 // devices}


def test_from_a_memory_map(resident, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    batch = feed(images, LABELS, rows, MESHES[4], resident=resident)
    np.testing.assert_array_equal(batch(2)[0], IMAGES[rows(2)])


def test_the_host_works_ahead():
    """While a batch is used the next ones are made, in order, and none twice."""
    made, enough = [], threading.Event()

    def noting(step):
        made.append(step)
        if step == AHEAD:
            enough.set()
        return rows(step)

    batch = feed(IMAGES, LABELS, noting, MESHES[1], resident=False)
    batch(0)
    assert enough.wait(10)
    for step in range(1, 4):
        batch(step)
    assert made == list(range(len(made)))
    assert len(made) <= 4 + AHEAD


def test_an_error_on_the_way_is_raised():
    def failing(step):
        raise OSError(f"step {step} cannot be read")

    with pytest.raises(OSError, match="step 3 cannot be read"):
        feed(IMAGES, LABELS, failing, MESHES[1], resident=False)(3)


def test_a_cpu_keeps_no_second_copy():
    assert not fits(IMAGES, MESHES[4])


class Accelerator:
    """A device that tells its memory."""

    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


@pytest.mark.parametrize(
    ("stats", "expected"),
    [({"bytes_limit": 4 * IMAGES.nbytes}, True), ({"bytes_limit": 4 * IMAGES.nbytes - 1}, False), (None, False)],
)
def test_an_accelerator_keeps_what_fits(stats, expected):
    class Mesh:
        devices = np.array([Accelerator(stats)])

    assert fits(IMAGES, Mesh()) is expected
