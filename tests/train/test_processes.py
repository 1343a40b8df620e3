"""One process agrees with itself, and one run at a time works in a directory."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from lowcost.train import processes
from lowcost.train.lock import locked


def test_alone_it_agrees_with_itself():
    assert processes.process_max(15) == 15
    assert processes.from_process_0(lambda: {"a": 1}) == {"a": 1}
    assert processes.is_process_0()


def test_what_process_0_sends_may_exceed_one_collective(monkeypatch):
    """It is sent in parts, of which the last may be smaller; what the other processes send is not used."""
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "PART_BYTES", 10)
    monkeypatch.setattr(processes, "is_process_0", lambda: True)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", lambda x: sent.append(x) or x)
    value = {"a": list(range(20))}
    assert processes.from_process_0(lambda: value) == value
    assert {len(part) for part in sent[1:-1]} == {10}
    assert 0 < len(sent[-1]) <= 10
    received = iter(sent)
    monkeypatch.setattr(processes, "is_process_0", lambda: False)

    def receive(x):
        part = next(received)
        assert x.shape == part.shape
        return part

    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", receive)
    assert processes.from_process_0(lambda: pytest.fail("only process 0 makes it")) == value


def test_processes_name_the_same_differences(monkeypatch):
    """A value may be missing in some processes; all of them then still gather one array of the same length."""
    values = {"a": 1, "b": 2, "moments": [0]}, {"a": 1, "b": 3, "masked": True}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "from_process_0", lambda make: {k: json.dumps(x) for k, x in values[0].items()})
    sent = []
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda x: sent.append(x) or x[None])
    for of_process in values:
        processes.differing(of_process)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda x: np.stack(sent))
    expected = ["b", "moments", "values that process 0 lacks"]
    assert [processes.differing(of_process) for of_process in values] == [expected] * 2


def test_one_run_at_a_time(tmp_path):
    """A directory that another process uses is refused; when that process ends, even by a kill, the lock is free."""
    code = "import sys, pathlib; from lowcost.train.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"in\n"
    message = rf"run must not be in use, got process {other.pid} on .*; wait for it, or choose another --workdir"
    with pytest.raises(OSError, match=message), locked(tmp_path / "run"):
        pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with locked(tmp_path / "run"):
        pass
