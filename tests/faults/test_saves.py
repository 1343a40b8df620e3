"""Tests processes killed while they write, and checkpoints that are read, moved or lost."""

import itertools
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from faults.subject import ROOT, error_of, exchange, outcome, steps_saved

from experiments.common import runs
from lowcost.deploy.loading import identity
from lowcost.train.checkpoint import Checkpoints

SAVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from lowcost.train.checkpoint import Checkpoints
for step in 1, 2, 3:
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
    checkpoints.save(step, {"w": jnp.full((50, 8), float(step))}, {})
    checkpoints.close()
    print(step, flush=True)
"""
WRITES = (
    *("write", "writev", "pwrite64", "fallocate", "ftruncate", "fsync", "fdatasync", "mkdir", "mkdirat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
)
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
"""Takes from root the right to read what nobody may read."""


def test_killed_in_system_calls(lab, record):
    """Kills a process at the n-th call of each kind that writes, for every n, while it saves three times."""
    name = "kill -9 at each system call that writes"
    if shutil.which("strace") is None:
        record(name, "not tried: needs strace")
        pytest.skip("needs strace")
    killed, survived = 0, 0
    for call in ("rename",) if lab.short else WRITES:
        for n in itertools.count(1):
            directory = lab.subject.directory / f"{call}-{n}"
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={n}"]
            done = subprocess.run(
                [*trace, sys.executable, "-c", SAVER, str(directory)], cwd=ROOT, capture_output=True, text=True
            )
            if done.returncode != -signal.SIGKILL:  # no thread makes n calls of this kind
                break
            killed += 1
            survived += is_readable(directory, max(map(int, done.stdout.split()), default=0))
    record(
        name,
        f"{survived} of {killed} kills in three saves left the newest finished checkpoint readable and nothing damaged",
    )
    assert survived == killed > 0


def is_readable(directory, finished):
    """Returns whether the newest checkpoint is at least as new as the last finished one, and none is damaged."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore_newest({"w": jax.ShapeDtypeStruct((50, 8), np.float32, sharding=device)})
    checkpoints.close()
    names = [path.name for path in directory.iterdir()]
    if restored is None:
        return finished == 0 and names == []
    return restored.step >= finished and bool(np.all(restored.state["w"] == restored.step)) and len(names) <= 2


@pytest.mark.full
def test_names_of_directories(lab, record):
    """Trains in work directories whose names have a meaning for a shell, a glob or a URL."""
    directory, names = lab.subject.directory / "names", ["exp[1]", "a*b?", "{x}#%20", "λ ü", "two\nlines", "~", "-v"]
    fine, refused = 0, 0
    for name in names:
        recovers = lab.recovers(directory / name)
        code, _ = outcome(lab.subject.start_program("evaluate", "--workdir", directory / name))
        fine += recovers and code == 0
    for name in "back\\slash", "gs:", os.fsdecode(b"raw\xff"):
        code, line = error_of(lab.subject.start(directory / name))
        refused += code == 2 and "must be UTF-8" in line and not steps_saved(directory / name)
    record(
        "work directories with [, *, ?, #, a newline or ~ in their names",
        f"{fine} of {len(names)} trained to the uninterrupted state and evaluated; {refused} names that orbax cannot "
        "read refused before step 0",
    )
    assert fine == len(names)
    assert refused == 3


@pytest.mark.full
def test_unreadable_files(lab, record):
    """A checkpoint file that may not be read is an error; once it may be read, the run recovers."""
    name, wrap = "a checkpoint file that may not be read", AS_A_USER if os.geteuid() == 0 else ()
    if wrap and shutil.which(wrap[0]) is None:
        record(name, "not tried: needs setpriv")
        pytest.skip("needs setpriv")
    workdir = lab.copy("unreadable")
    before = steps_saved(workdir)
    files = [file for file in (workdir / "checkpoints" / str(before[-1])).rglob("*") if file.is_file()]
    values = max(files, key=lambda file: file.stat().st_size)
    values.chmod(0)
    code, line = error_of(lab.subject.start(workdir, wrap=wrap))
    kept = steps_saved(workdir) == before and not list((workdir / "checkpoints").glob("damaged*"))
    values.chmod(0o644)
    recovers = lab.recovers(workdir)
    record(
        name,
        f"exit {code}, {'Permission denied' if 'Permission denied' in line else line}, "
        f"{'nothing' if kept else 'SOMETHING'} renamed; readable again, {'the' if recovers else 'NOT the'} same state",
    )
    assert code == 2
    assert kept
    assert recovers


@pytest.mark.full
def test_lost_checkpoints(lab, record):
    """Refuses to train a finished run again whose checkpoints are deleted, or all set aside."""
    refused = 0
    for case in "deleted", "set aside":
        workdir = lab.copy(case)
        for path in (workdir / "checkpoints").iterdir():
            shutil.rmtree(path) if case == "deleted" else path.rename(path.with_name(f"damaged-{path.name}-1"))
        files = [workdir / name for name in ("metrics.jsonl", "result.json")]
        before = [file.read_bytes() for file in files]
        code, _ = error_of(lab.subject.start(workdir))
        refused += code == 2 and before == [file.read_bytes() for file in files]
    record(
        "a finished run started again, its checkpoints deleted or set aside",
        f"{refused} of 2 refused, metrics and result as they were",
    )
    assert refused == 2


@pytest.mark.full
def test_a_concurrent_reader(lab, record):
    """Reads the newest checkpoint again and again while a run trains that keeps one."""
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        runs.trained(lab.whole).variables["params"],
    )
    workdir = lab.subject.directory / "read"
    process = lab.subject.start(workdir, "--keep", 1)
    reads, failed, steps = 0, 0, set()
    while process.poll() is None:
        if steps_saved(workdir):
            reads += 1
            checkpoints = Checkpoints(workdir / "checkpoints", run=identity(workdir), owned=False)
            try:
                restored = checkpoints.restore_newest({"params": params})
                failed += restored is None
                steps.add(restored and restored.step)
            except (ValueError, OSError):
                failed += 1
            finally:
                checkpoints.close()
    outcome(process)
    record(
        "a reader beside a run that keeps 1 checkpoint", f"{reads} reads of {len(steps)} checkpoints, {failed} failed"
    )
    assert failed == 0
    assert len(steps) > 2


@pytest.mark.full
def test_exchanged_checkpoints(lab, record):
    """Refuses checkpoints that are renamed, swapped or of another seed, and a result of another run."""
    other = lab.subject.directory / "other-seed"
    lab.subject.finish(other, "--seed", 5)

    def renamed(older, newest):
        newest.rename(newest.with_name(str(int(newest.name) + 10)))

    def copied(older, newest):
        shutil.rmtree(newest)
        shutil.copytree(other / "checkpoints" / newest.name, newest)

    def result(older, newest):
        shutil.copy(other / "result.json", newest.parents[1] / "result.json")

    refused = []
    for change in renamed, exchange, copied, result:
        workdir = lab.copy(change.__name__)
        change(*(workdir / "checkpoints" / str(step) for step in steps_saved(workdir)))
        for program in ("export", "--out", workdir / "net.onnx"), ("evaluate",):
            code, _ = error_of(lab.subject.start_program(*program, "--workdir", workdir))
            refused.append(code == 2 and not (workdir / "net.onnx").exists())
    record(
        "checkpoints renamed, swapped or copied from another seed's run; its result.json",
        f"{sum(refused)} of {len(refused)} refused by export and evaluate, no file written",
    )
    assert all(refused)
