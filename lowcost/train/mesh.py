"""Devices: one mesh with a "data" axis over all of them, in all processes; along it the batch is sharded.

Weights are replicated.
"""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowcost.batching import BATCH_AXIS
from lowcost.train.processes import devices, unequal_devices


def use_every_core(batch_size: int) -> None:
    """Let a CPU appear as one device per core, as many as divide batch_size and get at least 8 images each.

    XLA's CPU transforms and elementwise loops hardly use a second core; a second device does. Call it before JAX
    touches a device; a number that the user chose (`jax_num_cpu_devices`, XLA_FLAGS) is left alone.

    Devices that are the cores of a busy machine may wait long for one another: XLA, which takes more than 40 s for a
    deadlock and aborts, is given ten minutes.
    """
    if "collective_call_terminate" not in os.environ.get("XLA_FLAGS", ""):
        patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {patience}".strip()
    configured = jax.config.values["jax_num_cpu_devices"] != -1
    if not configured and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = max(1, min(cores, batch_size // 8))
        jax.config.update("jax_num_cpu_devices", max(d for d in range(1, most + 1) if batch_size % d == 0))


def data_mesh(batch_size: int) -> Mesh:
    """All devices of all processes along the axis "data": the mesh → `jax.set_mesh`.

    Raises:
        ValueError: the devices do not divide batch_size, or processes have different numbers of them.
        OSError: JAX has no device to run on.
    """
    number = len(devices())
    if unequal_devices():
        raise ValueError("all processes must have the same number of devices, got several; start them by one command")
    if batch_size % number:
        below = batch_size - batch_size % number
        remedy = f"use e.g. {below or number}"
        raise ValueError(f"batch size {batch_size} is not divisible by the {number} devices that share it; {remedy}")
    return jax.make_mesh((number,), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device of mesh holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Each device of mesh holds its part of the array's axis of the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that all processes have alike, on the devices by a sharding; each moves what its devices hold."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def shard_batch(mesh: Mesh, *arrays: np.ndarray) -> list[jax.Array]:
    """Host arrays [B, ...] → device arrays, each device of mesh holding its part of the leading axis."""
    return [place(array, over_batch(mesh)) for array in arrays]
