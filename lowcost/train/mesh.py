"""Builds one mesh with the axis "data" over all devices of all processes, along which batches are sharded.

Weights are replicated.
"""

import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowcost.batching import BATCH_AXIS
from lowcost.train.processes import devices, unequal_devices

IMAGES_PER_CORE = 8
"""The fewest images for which another device pays."""


def use_every_core(batch_size: int, images_per_core: int = IMAGES_PER_CORE) -> None:
    """Makes JAX see one CPU device per core: as many as divide batch_size, with at least `images_per_core` images each.

    XLA's CPU transforms and elementwise loops hardly use a second core, but a second device does. Call it before JAX
    uses a device. A number of devices that the user chose (`jax_num_cpu_devices`, XLA_FLAGS) stays.

    On a busy machine devices may wait long for one another, and XLA aborts after 40 s; here it waits ten minutes.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "collective_call_terminate" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds=600".strip()
    configured = jax.config.jax_num_cpu_devices != -1  # type: ignore[attr-defined]
    if not configured and "host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        number_max = max(1, min(cores, batch_size // images_per_core))
        jax.config.update("jax_num_cpu_devices", max(d for d in range(1, number_max + 1) if batch_size % d == 0))


def data_mesh(batch_size: int, *, all_devices: bool = True) -> Mesh:
    """Returns the mesh of all devices of all processes along the axis "data", for `jax.set_mesh`.

    Args:
        batch_size: images of a batch.
        all_devices: False for as many devices of a single process as divide the batch, one at least.

    Raises:
        ValueError: the devices do not divide batch_size, or processes have different numbers of them.
        OSError: JAX has no device to run on.
    """
    found = devices()
    number = len(found)
    if not all_devices and jax.process_count() == 1:
        number = math.gcd(number, batch_size)
    if unequal_devices():
        raise ValueError("all processes must have the same number of devices, got several; start them by one command")
    if batch_size % number:
        below = batch_size - batch_size % number
        expected = f"batch_size must be divisible by the {number} devices that share a batch"
        raise ValueError(f"{expected}, got {batch_size}; use e.g. {below or number}")
    return mesh_over(found[:number])


def mesh_over(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh with the axis "data" over these devices."""
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which every device of mesh holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding in which each device of mesh holds its part of the batch, along this axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Returns a host array, equal in all processes, on the devices by a sharding; each process moves its own part."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def shard_batch(mesh: Mesh, *arrays: np.ndarray) -> list[jax.Array]:
    """Returns host arrays [B, ...] on the devices of mesh, each of which holds its part of the leading axis."""
    return [place(array, over_batch(mesh)) for array in arrays]
