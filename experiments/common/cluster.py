"""Joins the processes of a run, by the flags of the program or as the cluster states."""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

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


def _find(coordinator: str, is_process_0: bool, deadline: float) -> None:
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
            with listen(("", int(port))) if is_process_0 else contextlib.nullcontext():
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
