"""Processes that cannot connect, and missing devices, end a program with one line and status 2, in a stated time."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments.common.cluster import connect
from experiments.common.config import Cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port():
    """Returns a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(process):
    """Returns the one line of a process that ends with status 2."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    [line] = errors.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def asked(monkeypatch):
    """Returns the list of calls of `jax.distributed.initialize`, which finds no cluster."""
    calls = []

    def initialize(*arguments, **options):
        calls.append((arguments, options))
        if not arguments:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_flags_are_handed_on(asked):
    with socket.create_server(("localhost", 0)) as first:
        address = f"localhost:{first.getsockname()[1]}"
        assert connect(Cluster(address, 4, 3, heartbeat_seconds=7, wait_seconds=20)) == 4
    assert asked == [((address, 4, 3), {"heartbeat_timeout_seconds": 7, "initialization_timeout": 80})]


def test_without_flags_jax_looks_for_a_cluster(asked):
    assert connect(Cluster(heartbeat_seconds=7)) == 1
    assert asked == [((), {"heartbeat_timeout_seconds": 7, "initialization_timeout": 360})]


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_STEP_NUM_TASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "1"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
)
def test_alone_in_a_cluster_nobody_is_looked_for(asked, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert connect(Cluster()) == 1
    assert asked == []


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_cluster_tells_how_many_they_are(monkeypatch, name):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: None)
    monkeypatch.setenv(name, "4")
    assert connect(Cluster()) == 4


@pytest.mark.parametrize("given", [("host:1", None, None), ("host:1", 2, None), (None, 2, 0), ("host:1", 2, 2)])
def test_incomplete_flags_are_refused(asked, given):
    message = r"all of --cluster\.coordinator HOST:PORT, --cluster\.num-processes N and --cluster\.process-id"
    with pytest.raises(ValueError, match=message):
        connect(Cluster(*given))
    assert asked == []


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":1", "localhost:0", "localhost:99999", "localhost:x"])
@pytest.mark.parametrize("process", [0, 1])
def test_an_address_that_is_none_is_refused(address, process):
    with pytest.raises(ValueError, match=f"--cluster.coordinator must be HOST:PORT .*, got {address}; pass"):
        connect(Cluster(address, 2, process))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_refused(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with server as other:
        address = f"localhost:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=rf"must be .* a free PORT of it, got {address} \(Address already in use"):
            connect(Cluster(address, 2, 0, wait_seconds=1))


@pytest.mark.parametrize(("process", "host"), [(0, "none.invalid"), (1, "none.invalid"), (1, "127.0.0.1")])
def test_a_process_0_that_does_not_answer_is_waited_for_in_vain(port, process, host):
    begin = time.monotonic()
    with pytest.raises(OSError, match=rf"must be process 0's HOST .*, got {host}:{port} \(.*; start process 0"):
        connect(Cluster(f"{host}:{port}", 2, process, wait_seconds=1))
    assert time.monotonic() - begin < 60  # the resolver may be slow


def test_training_ends_when_a_process_does_not_come(port):
    """Process 0 of two ends with one line; JAX alone would abort with a stack of C++ calls."""
    cluster = {"coordinator": f"localhost:{port}", "num-processes": 2, "process-id": 0, "wait-seconds": 2}
    flags = [f"--cluster.{name}={value}" for name, value in cluster.items()]
    line = refused(start("-m", "experiments.train", "digits", *flags))
    assert line.startswith("error: all processes of the run must start within --cluster.wait-seconds")


def test_a_process_that_has_ended_is_reported(port):
    """Process 1 ends after both have connected; process 0 reports it at the next collective operation."""
    code = "import os, sys; from experiments.common.cluster import Cluster, connect\n"
    code += "from lowcost.train.processes import process_max\n"
    code += "i = int(sys.argv[2]); connect(Cluster(sys.argv[1], 2, i, wait_seconds=30)); process_max(1)\n"
    code += "os._exit(0) if i else None\n"
    code += (
        "try:\n    process_max(2)\nexcept OSError as error:\n    print(f'error: {error}', file=sys.stderr); os._exit(2)"
    )
    pair = [start("-c", code, f"localhost:{port}", i) for i in range(2)]
    pair[1].communicate(timeout=60)
    assert pair[1].returncode == 0
    assert "error: all processes of the run must be alive, got UNKNOWN: Gloo" in refused(pair[0])


@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_training_without_the_devices_asked_for_is_refused(tmp_path, platforms):
    line = refused(start("-m", "experiments.train", "digits", "--workdir", tmp_path, JAX_PLATFORMS=platforms))
    assert f"JAX must find devices, got none with JAX_PLATFORMS={platforms} (" in line
    assert list(tmp_path.iterdir()) == []
