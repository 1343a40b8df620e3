"""How processes find each other, and that one alone needs nobody; two real ones are in `experiments.faults`."""

import socket
import subprocess
import sys

import jax
import pytest

from lowcost.train import processes
from lowcost.train.lock import locked


@pytest.fixture
def asked(monkeypatch):
    """The calls of `jax.distributed.initialize`, which finds no cluster."""
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
        assert processes.connect(address, 4, 3, heartbeat_seconds=7, wait_seconds=20) == 4
    assert asked == [((address, 4, 3), {"heartbeat_timeout_seconds": 7, "initialization_timeout": 80})]


def test_without_flags_jax_looks_for_a_cluster(asked):
    assert processes.connect(heartbeat_seconds=7) == 1
    assert asked == [((), {"heartbeat_timeout_seconds": 7, "initialization_timeout": 360})]


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_STEP_NUM_TASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "1"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
)
def test_alone_in_a_cluster_nobody_is_looked_for(asked, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert processes.connect() == 1
    assert asked == []


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_cluster_tells_how_many_they_are(monkeypatch, name):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: None)
    monkeypatch.setenv(name, "4")
    assert processes.connect() == 4


@pytest.mark.parametrize("given", [("host:1", None, None), ("host:1", 2, None), (None, 2, 0), ("host:1", 2, 2)])
def test_incomplete_flags_are_refused(asked, given):
    with pytest.raises(ValueError, match="all of --coordinator HOST:PORT, --num-processes N and --process-id"):
        processes.connect(*given)
    assert asked == []


def test_alone_it_agrees_with_itself():
    assert processes.agree(15) == 15
    assert processes.from_first(lambda: {"a": 1}) == {"a": 1}
    assert processes.is_first()


def test_one_run_at_a_time(tmp_path):
    """Another process cannot enter; when it ends, however it ends, the lock is free."""
    code = "import sys, pathlib; from lowcost.train.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"in\n"
    message = rf"run is in use by process {other.pid} on .*; wait for it, or choose another --workdir"
    with pytest.raises(OSError, match=message), locked(tmp_path / "run"):
        pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with locked(tmp_path / "run"):
        pass
