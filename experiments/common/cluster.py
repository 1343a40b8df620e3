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
from experiments.common.entry import FIXABLE
from lowcost.terminal import first_line, report_error

_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables by which a cluster states the number of processes; 1 is a process that works alone, though in a cluster."""
_MARGIN = 60
"""Seconds by which JAX waits longer than this module: at the end of its wait JAX would abort the process."""


def connect(cluster: Cluster) -> int:
    """Joins the other processes of a run, before JAX uses a device; a single process joins none.

    Without a coordinator, JAX finds the other processes by SLURM, Open MPI, Kubernetes indexed jobs (with the package
    `kubernetes`) and Cloud TPU.

    If a process is missing after `wait_seconds`, prints one line on stderr and ends this process with status 2: JAX's
    client cannot be stopped while it waits.

    Returns:
        The number of processes, 1 if it is not known before JAX uses a device.

    Raises:
        ValueError: only some of coordinator, num_processes and process_id are given, or they do not fit together.
        OSError: process 0 cannot be reached or cannot listen at its port, or JAX cannot join the others.
    """
    deadline = time.monotonic() + cluster.wait_seconds
    join = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        initialization_timeout=cluster.wait_seconds + _MARGIN,
    )
    coordinator, number, process = address = cluster.coordinator, cluster.num_processes, cluster.process_id
    if address != (None, None, None):
        if coordinator is None or number is None or process is None or not 0 <= process < number:
            needed = "--cluster.coordinator HOST:PORT, --cluster.num-processes N and --cluster.process-id 0 … N-1"
            raise ValueError(f"several processes need all of {needed}, got {coordinator}, {number} and {process}")
        _find(coordinator, process == 0, deadline)
        _until(deadline, partial(join, *address))
        return number
    pod_of_no_job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ
    counts = [int(os.environ[name]) for name in _COUNTS if name in os.environ]
    if pod_of_no_job or 1 in counts:
        return 1
    try:
        _until(deadline, join)
    except ValueError:  # JAX found no cluster
        return 1
    return max(counts, default=1)


def _find(coordinator: str, is_process_0: bool, deadline: float) -> None:
    """Returns once process 0's port can be connected to; until JAX listens there, process 0 does so itself."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        problem = f"--cluster.coordinator must be HOST:PORT with a port from 1 to 65535, got {coordinator}"
        raise ValueError(f"{problem}; pass the same address of process 0 to all processes")
    both = socket.has_dualstack_ipv6()
    listen = partial(socket.create_server, family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    while True:
        try:
            with listen(("", int(port))) if is_process_0 else contextlib.nullcontext():
                return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES) or time.monotonic() > deadline:
                problem = f"--cluster.coordinator must be process 0's HOST and a free PORT of it, got {coordinator}"
                reason = error.strerror or error
                raise OSError(f"{problem} ({reason}); start process 0, or use another address") from error
        time.sleep(0.2)


def _until(deadline: float, join: Callable[[], None]) -> None:
    """Calls join() in a thread, so that Ctrl-C and the deadline can end the wait."""
    try:
        ThreadPoolExecutor(1).submit(join).result(max(1.0, deadline - time.monotonic()))
    except TimeoutError:
        expected = "all processes of the run must start within --cluster.wait-seconds, got no sign of at least one"
        report_error(f"{expected}; start all of them, with the same --cluster.num-processes")
        sys.stderr.flush()
        os._exit(FIXABLE)
    except RuntimeError as error:
        raise OSError(first_line(error)) from error
