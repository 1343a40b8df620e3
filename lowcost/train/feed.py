"""Batches on the devices: gathered there when the whole set fits, otherwise on the host and ahead of time.

Both are pure functions of the step and give the same bits, on any number of devices.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from lowcost.spectral import BATCH_AXIS
from lowcost.train.mesh import replicated, shard_batch

Batch = list[jax.Array]
AHEAD = 2


def fits(images: NDArray[np.uint8], mesh: Mesh) -> bool:
    """Whether every device can keep all images in a quarter of its memory.

    A CPU's devices are parts of one host: there a copy for each of them would gain nothing, and the answer is no.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return False
    return 4 * images.nbytes <= (device.memory_stats() or {}).get("bytes_limit", 0)


def feed(
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    indices: Callable[[int], NDArray[np.int64]],
    mesh: Mesh,
    *,
    resident: bool,
) -> Callable[[int], Batch]:
    """step → [images[indices(step)], labels[indices(step)]], each device holding its part of the batch.

    Args:
        images: uint8 [N, ...]; may be a memory map larger than the memory when not resident.
        labels: int32 [N].
        indices: step → rows of the batch; called from another thread when not resident.
        mesh: the devices, which divide the batch.
        resident: keep all images on every device and gather there; otherwise gather on the host, two batches ahead.
    """
    if resident:
        return _resident(images, labels, indices, mesh)

    def make(step: int) -> Batch:
        rows = indices(step)
        return shard_batch(mesh, images[rows], labels[rows])

    return _ahead(make)


def _resident(images, labels, indices, mesh):
    everything = jax.device_put((images, labels), replicated(mesh))
    batch = NamedSharding(mesh, PartitionSpec(BATCH_AXIS))

    @partial(jax.jit, out_shardings=batch)
    def take(everything, rows):
        return [array.at[rows].get(mode="promise_in_bounds") for array in everything]

    return lambda step: take(everything, jax.device_put(indices(step).astype(np.int32), batch))


def _ahead(make: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """make(step) on a thread that goes on with the next steps meanwhile."""
    pool = ThreadPoolExecutor(1, "feed")
    coming: dict[int, Future[Batch]] = {}

    def batch(step: int) -> Batch:
        for wanted in range(step, step + 1 + AHEAD):
            if wanted not in coming:
                coming[wanted] = pool.submit(make, wanted)
        for passed in [s for s in coming if not step <= s <= step + AHEAD]:
            coming.pop(passed).cancel()
        return coming.pop(step).result()

    return batch
