"""Feeds batches to the devices: gathers them there if the data set fits, otherwise on the host ahead of time.

Both are pure functions of the step and return the same bits, on any number of devices and processes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from lowcost.train.mesh import over_batch, place, replicated
from lowcost.train.processes import process_max

Batches = list[jax.Array]
"""[images, labels, indices], each [K, ...] with one batch for each of K steps."""
Feed = Callable[[int, int, int], Batches]
"""(step, n, next n) → the batches of n steps."""


def fits_on_devices(images: NDArray[Any], mesh: Mesh) -> bool:
    """Returns whether all images fit into a quarter of each device's memory; always False on a CPU.

    All processes must call it at the same point; the result is the same for all.
    """
    device = mesh.local_devices[0]
    memory = {} if device.platform == "cpu" else device.memory_stats() or {}
    return not process_max(4 * images.nbytes > memory.get("bytes_limit", 0))


def feed(
    images: NDArray[Any],
    labels: NDArray[Any],
    indices: Callable[[int], NDArray[np.int64]],
    mesh: Mesh,
    *,
    steps_max: int,
    resident: bool,
) -> Feed:
    """Returns (step, n, next n) → the batches of steps step … step + n - 1, sharded over the devices.

    Batch i is [images[rows], labels[rows], rows] with rows = indices(step + i). The arrays always hold `steps_max`
    batches, so that one compiled program takes them; the content after the n-th is undefined. The next n batches are
    prepared in the background.

    Args:
        images: [N, ...], of any dtype; unless resident, may be a memory map larger than the memory.
        labels: int32 [N] for classes, float32 [N, K] for tags and values, uint8 [N, *grid] for points, or others that
            the loss takes.
        indices: step → rows of its batch, [B] or, for several seeds, [S, B]; called from another thread.
        mesh: the devices, whose number divides B.
        steps_max: the largest n.
        resident: whether to keep all images on every device and gather there.
    """
    arrays = [place(array, replicated(mesh)) if resident else array for array in (images, labels)]

    def prepare(step: int, n: int) -> Batches:
        unpadded = [indices(s).astype(np.int32) for s in range(step, step + n)]
        rows = np.stack(unpadded + unpadded[:1] * (steps_max - n))
        sharding = over_batch(mesh, rows.ndim - 1)
        placed = place(rows, sharding)
        if resident:
            return _take(arrays, placed, sharding)
        return [*(_from_host(array, rows, n, sharding) for array in arrays), placed]

    if resident:  # no thread, since all processes must start their programs in the same order
        return lambda step, n, following: prepare(step, n)
    return _ahead(prepare)


def _ahead(prepare: Callable[[int, int], Batches]) -> Feed:
    """Runs prepare(step, n) on a thread, and starts the next one ahead of time."""
    pool = ThreadPoolExecutor(1, "feed")
    # The cache holds the next batches alone, so that each is prepared once.
    submit = lru_cache(maxsize=1)(lambda step, n: pool.submit(prepare, step, n))

    def batches(step: int, n: int, following: int) -> Batches:
        ready = submit(step, n)
        if following:
            submit(step + n, following)
        return ready.result()

    return batches


def _from_host(source: Any, rows: NDArray[np.int32], n: int, sharding: NamedSharding) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        local = rows[(index or ())[: rows.ndim]]
        result = np.empty(local.shape + source.shape[1:], source.dtype)
        result[:n] = source[local[:n]]
        return result

    return jax.make_array_from_callback(rows.shape + source.shape[1:], sharding, part)


@partial(jax.jit, static_argnums=2)
def _take(arrays: Batches, rows: jax.Array, sharding: NamedSharding) -> Batches:
    taken = [array.at[rows].get(mode="promise_in_bounds") for array in arrays]
    return jax.lax.with_sharding_constraint([*taken, rows], sharding)
