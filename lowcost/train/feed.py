"""Batches on the devices: gathered there when the whole set fits, otherwise on the host and ahead of time.

Both are pure functions of the step and give the same bits, on any number of devices and processes.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from lowcost.train.mesh import over_batch, place, replicated

Batches = list[jax.Array]
"""[images, labels, indices], each [K, ...] with a batch for each of K steps."""


def fits(images: NDArray[Any], mesh: Mesh) -> bool:
    """Whether every device can keep all images in a quarter of its memory.

    A CPU's devices are parts of one host: there a copy for each of them would gain nothing, and the answer is no.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return False
    return 4 * images.nbytes <= (device.memory_stats() or {}).get("bytes_limit", 0)


def feed(
    images: NDArray[Any],
    labels: NDArray[np.int32],
    indices: Callable[[int], NDArray[np.int64]],
    mesh: Mesh,
    *,
    most: int,
    resident: bool,
) -> Callable[[int, int, int], Batches]:
    """(step, n, next n) → the batches of steps step … step + n - 1, each device holding its part of every batch.

    Batch i is [images[rows], labels[rows], rows] with rows = indices(step + i). The arrays are always `most` batches
    long, so that one compiled program takes them; those behind the n-th hold anything. While they are used, the next n
    are made ready.

    Args:
        images: [N, ...], of any dtype; may be a memory map larger than the memory when not resident.
        labels: int32 [N].
        indices: step → rows of its batch, [B] or, for several seeds, [S, B]; called from another thread.
        mesh: the devices, which divide B.
        most: the largest n.
        resident: keep all images on every device and gather there.
    """
    make = _resident(images, labels, mesh) if resident else _from_host(images, labels, mesh)

    def prepare(step: int, n: int) -> Batches:
        rows = [indices(s).astype(np.int32) for s in range(step, step + n)]
        return make(np.stack(rows + rows[:1] * (most - n)), n)

    if resident:  # a program for the devices: all processes must start theirs in the same order
        return lambda step, n, following: prepare(step, n)
    return _ahead(prepare)


def _ahead(prepare: Callable[[int, int], Batches]) -> Callable[[int, int, int], Batches]:
    """prepare(step, n) on a thread that goes on with what follows."""
    pool = ThreadPoolExecutor(1, "feed")
    coming: dict[tuple[int, int], Future[Batches]] = {}

    def batches(step: int, n: int, following: int) -> Batches:
        ready = coming.pop((step, n), None) or pool.submit(prepare, step, n)
        for unwanted in coming.values():
            unwanted.cancel()
        coming.clear()
        if following:
            coming[step + n, following] = pool.submit(prepare, step + n, following)
        return ready.result()

    return batches


def _from_host(images, labels, mesh):
    def make(rows: NDArray[np.int32], n: int) -> Batches:
        sharding = over_batch(mesh, rows.ndim - 1)

        def gathered(source: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                wanted = rows[(index or ())[: rows.ndim]]
                result = np.empty(wanted.shape + source.shape[1:], source.dtype)
                result[:n] = source[wanted[:n]]
                return result

            return jax.make_array_from_callback(rows.shape + source.shape[1:], sharding, part)

        return [gathered(images), gathered(labels), place(rows, sharding)]

    return make


def _resident(images, labels, mesh):
    everything = [place(array, replicated(mesh)) for array in (images, labels)]

    @partial(jax.jit, static_argnums=2)
    def take(everything, rows, sharding):
        taken = [array.at[rows].get(mode="promise_in_bounds") for array in everything]
        return jax.lax.with_sharding_constraint([*taken, rows], sharding)

    def make(rows: NDArray[np.int32], n: int) -> Batches:
        sharding = over_batch(mesh, rows.ndim - 1)
        return take(everything, place(rows, sharding), sharding)

    return make
