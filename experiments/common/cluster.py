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

from experiments.common.config import Cluster
from lowcost.terminal import warn

# Where a cluster says how many processes work together; 1 is one that works alone, although it is inside.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def connect(cluster: Cluster) -> int:
    """Joins the other processes of a run, before JAX uses a device; a single process joins none.

    Without a coordinator, JAX finds the other processes by SLURM, Open MPI, Kubernetes indexed jobs (with the package
    `kubernetes`) and Cloud TPU.

    If a process is missing after `wait_seconds`, prints one line on stderr and ends this process with status 2. JAX's
    client cannot be stopped while it waits, and would abort the process.

    Args:
        cluster: the other processes.

    Returns:
        The number of processes, 1 if it is not known before JAX uses a device.

    Raises:
        ValueError: only some of coordinator, num_processes and process_id are given, or they do not fit together.
        OSError: process 0 cannot be reached, or cannot listen at its port.
        RuntimeError: JAX cannot join the others.
    """
    coordinator, num_processes, process_id = cluster.coordinator, cluster.num_processes, cluster.process_id
    deadline = time.monotonic() + cluster.wait_seconds
    join = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        initialization_timeout=cluster.wait_seconds + 60,  # later than the deadline, because JAX would abort
    )
    if (coordinator, num_processes, process_id) != (None, None, None):
        if coordinator is None or num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(
                "several processes need all of --cluster.coordinator HOST:PORT, --cluster.num-processes N and "
                f"--cluster.process-id 0 … N-1, got {coordinator}, {num_processes} and {process_id}"
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
            f"--cluster.coordinator must be HOST:PORT with a port from 1 to 65535, got {coordinator}; "
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
                    f"--cluster.coordinator must be process 0's HOST and a free PORT of it, got {coordinator} "
                    f"({error.strerror or error}); start process 0, or use another address"
                ) from error
        time.sleep(0.2)


def _until(deadline: float, join: Callable[[], None]) -> None:
    """join(), in a thread, so that Ctrl-C and the deadline can end the wait."""
    try:
        ThreadPoolExecutor(1).submit(join).result(max(1.0, deadline - time.monotonic()))
    except TimeoutError:
        expected = "all processes of the run must start within --cluster.wait-seconds, got no sign of at least one"
        warn(f"error: {expected}; start all of them, with the same --cluster.num-processes")
        sys.stderr.flush()
        os._exit(2)
