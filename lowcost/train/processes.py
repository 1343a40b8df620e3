"""Many processes that train as one: how they find each other, and how they agree."""

import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

# Where a cluster says how many processes work together; 1 is one that works alone, although it is inside.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
) -> int:
    """Join the other processes of a run, before JAX touches a device; alone, do nothing.

    Without arguments the others are found as `jax.distributed` does: by SLURM, Open MPI, Kubernetes indexed jobs
    (with the package `kubernetes`) and Cloud TPU.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: which this is, from 0.
        heartbeat_seconds: after so long without a sign of life a process is taken for dead, and the others end.

    Returns:
        How many they are, as far as it is known before JAX touches a device; else 1.

    Raises:
        ValueError: only some of the arguments are given, or they do not fit together.
        RuntimeError: the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given):
        if coordinator is None or num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(
                "several processes need all of --coordinator HOST:PORT, --num-processes N and --process-id 0 … N-1; "
                f"got {coordinator}, {num_processes} and {process_id}"
            )
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds)
        return num_processes
    pod_of_no_job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ
    told = [int(os.environ[name]) for name in _COUNTS if name in os.environ]
    if pod_of_no_job or 1 in told:
        return 1
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError:  # JAX found no cluster
        return 1
    return max(told, default=1)


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """make() of process 0, in all of them; an exception there is raised in all.

    Args:
        make: called in process 0 alone; its result, or exception, must be picklable.

    Returns:
        Its result, in all processes.

    Raises:
        Exception: what make raised.
    """
    if jax.process_count() == 1:
        return make()
    outcome: tuple[bool, T | Exception] | None = None
    if is_first():
        try:
            outcome = True, make()
        except Exception as error:
            outcome = False, error
    payload = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    payload = np.resize(payload, size) if is_first() else np.zeros(size, np.uint8)
    fine, value = pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(payload)).tobytes())
    if not fine:
        raise value
    return value


def agree(number: int) -> int:
    """max number over all processes, in all of them; each must call it at the same point."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def unequal_devices() -> bool:
    """Returns whether processes have different numbers of devices, so that they can neither train nor agree."""
    return len(set(Counter(device.process_index for device in jax.devices()).values())) > 1


def differing(values: dict[str, Any]) -> list[str]:
    """Returns the names of those values (JSON) that are not the same in all processes, in each of them.

    Each must call it at the same point, with the same names.
    """
    if jax.process_count() == 1:
        return []
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:4] for value in values.values()]
    everywhere = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint32))
    return [name for name, column in zip(values, everywhere.T, strict=True) if len(set(column.tolist())) > 1]
