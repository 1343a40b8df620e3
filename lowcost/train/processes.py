"""Many processes that train as one: how they find each other, and how they agree."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    wait_seconds: int = 300,
) -> int:
    """Joins the other processes of a run, before JAX touches a device; a single process joins none.

    If one of them is missing after `wait_seconds`, prints one line on stderr and ends this process with status 2: a
    client of JAX that waits can neither be stopped nor closed, and would abort.

    Without arguments the others are found as `jax.distributed` does: by SLURM, Open MPI, Kubernetes indexed jobs
    (with the package `kubernetes`) and Cloud TPU.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: which this is, from 0.
        heartbeat_seconds: after so long without a sign of life a process is taken for dead, and the others end.
        wait_seconds: time in which all processes must have started.

    Returns:
        How many they are, as far as it is known before JAX touches a device; else 1.

    Raises:
        ValueError: only some of the arguments are given, or they do not fit together.
        OSError: process 0 cannot be reached, or it cannot listen at its port.
        RuntimeError: JAX cannot join the others.
    """
    deadline = time.monotonic() + wait_seconds
    join = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=heartbeat_seconds,
        initialization_timeout=wait_seconds + 60,  # its end would abort this process
    )
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given):
        if coordinator is None or num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(
                "several processes need all of --coordinator HOST:PORT, --num-processes N and --process-id 0 … N-1; "
                f"got {coordinator}, {num_processes} and {process_id}"
            )
        _find(coordinator, process_id == 0, deadline)
        _until(deadline, partial(join, coordinator, num_processes, process_id))
        return num_processes
    pod_of_no_job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ
    told = [int(os.environ[name]) for name in _COUNTS if name in os.environ]
    if pod_of_no_job or 1 in told:
        return 1
    try:
        _until(deadline, join)
    except ValueError:  # JAX found no cluster
        return 1
    return max(told, default=1)


def _find(coordinator: str, is_first: bool, deadline: float) -> None:
    """Returns once process 0's port can be connected to; until JAX does, process 0 itself listens there."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            f"--coordinator must be HOST:PORT with a port from 1 to 65535, got {coordinator}; "
            "pass the same address of process 0 to all processes"
        )
    both = socket.has_dualstack_ipv6()
    listen = partial(socket.create_server, family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    while True:
        try:
            with listen(("", int(port))) if is_first else contextlib.nullcontext():
                return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES) or time.monotonic() > deadline:
                raise OSError(
                    f"--coordinator must be process 0's HOST and a free PORT of it, got {coordinator} "
                    f"({error.strerror or error}); start process 0, or use another address"
                ) from error
        time.sleep(0.2)


def _until(deadline: float, join: Callable[[], None]) -> None:
    """join(), in a thread, so that Ctrl-C and the deadline can end the wait."""
    try:
        ThreadPoolExecutor(1).submit(join).result(max(1.0, deadline - time.monotonic()))
    except TimeoutError:
        expected = "error: all processes of the run must start within --wait-seconds, got no sign of at least one"
        print(f"{expected}; start all of them, with the same --num-processes", file=sys.stderr, flush=True)
        os._exit(2)


def devices() -> list[jax.Device]:
    """Returns all devices of all processes.

    Raises:
        OSError: JAX has no device to run on.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked, remedy = jax.config.values["jax_platforms"] or "", "unset it, or install what the devices need"
        if jax.distributed.is_initialized():
            remedy = "start all processes again"
        reason = _first_line(error) or "JAX knows none"
        raise OSError(f"JAX must find devices, got none with JAX_PLATFORMS={asked} ({reason}); {remedy}") from error


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """make() of process 0, in all of them; an exception there is raised in all.

    The pickle is of process 0 of this run and comes by JAX's collectives: like them, it trusts the network between the
    processes of a run, and reads no file.

    Args:
        make: called in process 0 alone; its result, or exception, must be picklable.

    Returns:
        Its result, in all processes.

    Raises:
        Exception: what make raised.
        ConnectionError: a process of the run has ended.
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
    with _all_alive():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
        payload = np.resize(payload, size) if is_first() else np.zeros(size, np.uint8)
        payload = np.asarray(multihost_utils.broadcast_one_to_all(payload))
    fine, value = pickle.loads(payload.tobytes())
    if not fine:
        raise value
    return value


def agree(number: int) -> int:
    """max number over all processes, in all of them; each must call it at the same point."""
    if jax.process_count() == 1:
        return number
    with _all_alive():
        return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def _all_alive() -> Iterator[None]:
    """Raises ConnectionError in place of JAX's errors, which are of many types, where a collective fails."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        expected = f"all processes of the run must be alive, got {_first_line(error)}"
        raise ConnectionError(f"{expected}; start all of them again to resume") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def unequal_devices() -> bool:
    """Returns whether processes have different numbers of devices, so that they can neither train nor agree."""
    return len(set(Counter(device.process_index for device in devices()).values())) > 1


def differing(values: dict[str, Any]) -> list[str]:
    """Returns the names of those values (JSON) that are not the same in all processes, in each of them.

    Each must call it at the same point, with the same names.
    """
    if jax.process_count() == 1:
        return []
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:4] for value in values.values()]
    with _all_alive():
        everywhere = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint32))
    return [name for name, column in zip(values, everywhere.T, strict=True) if len(set(column.tolist())) > 1]
