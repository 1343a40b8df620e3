"""What becomes of saved work: rows of `faults.faults` about checkpoints and who reads, moves or loses them."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.subject import ROOT, Laboratory, Row, error_of, outcome, steps_saved

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


def killed_in_system_calls(lab: Laboratory) -> Iterator[Row]:
    """Kills a process at the n-th call of each kind that writes, for every n, while it saves three times."""
    name = "kill -9 at each system call that writes"
    if shutil.which("strace") is None:
        yield Row(name, "not tried: needs strace", True)
        return
    killed, survived = 0, 0
    for call in ("rename",) if lab.short else WRITES:
        for n in itertools.count(1):
            directory = lab.subject.directory / f"{call}-{n}"
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={n}"]
            done = subprocess.run(
                [*trace, sys.executable, "-c", SAVER, str(directory)], cwd=ROOT, capture_output=True, text=True
            )
            if done.returncode != -signal.SIGKILL:  # no thread makes so many calls of this kind
                break
            killed += 1
            survived += _is_whole(directory, int(done.stdout.split()[-1]) if done.stdout.split() else 0)
    yield Row(
        name,
        f"{survived} of {killed} kills in three saves left the newest finished checkpoint readable and nothing damaged",
        survived == killed > 0,
    )


def _is_whole(directory: Path, finished: int) -> bool:
    import jax
    import numpy as np

    from lowcost.train.checkpoint import Checkpoints

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore_newest({"w": jax.ShapeDtypeStruct((50, 8), np.float32, sharding=here)})
    checkpoints.close()
    names = [path.name for path in directory.iterdir()]
    if restored is None:
        return finished == 0 and names == []
    return restored.step >= finished and bool(np.all(restored.state["w"] == restored.step)) and len(names) <= 2


def names_of_directories(lab: Laboratory) -> Iterator[Row]:
    """Work directories whose names mean something to a shell, a glob or a URL."""
    names = ["exp[1]", "a*b?", "{x}#%20", "λ ü", "two\nlines", "~", "-v"]
    whole = 0
    for name in names:
        directory = lab.subject.directory / "names" / name
        trained = lab.is_whole(directory)
        code, _ = outcome(lab.subject.start_program("evaluate", "--workdir", directory))
        whole += trained and code == 0
    refused = 0
    for name in "back\\slash", "gs:", os.fsdecode(b"raw\xff"):
        directory = lab.subject.directory / "names" / name
        code, line = error_of(lab.subject.start(directory))
        refused += code == 2 and "must be UTF-8" in line and not steps_saved(directory)
    yield Row(
        "work directories with [, *, ?, #, a newline or ~ in their names",
        f"{whole} of {len(names)} trained to the undisturbed state and evaluated; {refused} names that orbax cannot "
        "read refused before step 0",
        whole == len(names) and refused == 3,
    )


def unreadable_files(lab: Laboratory) -> Iterator[Row]:
    """A file with values of the newest checkpoint that may not be read, then may be again."""
    workdir = lab.copy("unreadable")
    before = steps_saved(workdir)
    files = [file for file in (workdir / "checkpoints" / str(before[-1])).rglob("*") if file.is_file()]
    values = max(files, key=lambda file: file.stat().st_size)
    values.chmod(0)
    wrap = AS_A_USER if os.geteuid() == 0 else ()
    if wrap and shutil.which(wrap[0]) is None:
        yield Row("a checkpoint file that may not be read", "not tried: needs setpriv", True)
        return
    code, line = error_of(lab.subject.start(workdir, wrap=wrap))
    kept = steps_saved(workdir) == before and not list((workdir / "checkpoints").glob("damaged*"))
    values.chmod(0o644)
    whole = lab.is_whole(workdir)
    yield Row(
        "a checkpoint file that may not be read",
        f"exit {code}, {'Permission denied' if 'Permission denied' in line else line}, "
        f"{'nothing' if kept else 'SOMETHING'} renamed; readable again, {'the' if whole else 'NOT the'} same state",
        code == 2 and kept and whole,
    )


def lost_checkpoints(lab: Laboratory) -> Iterator[Row]:
    """A finished run whose checkpoints are deleted, or all set aside."""
    refused = 0
    for case in "deleted", "set aside":
        workdir = lab.copy(case)
        for path in (workdir / "checkpoints").iterdir():
            shutil.rmtree(path) if case == "deleted" else path.rename(path.with_name(f"damaged-{path.name}-1"))
        kept = (workdir / "metrics.jsonl").read_bytes(), (workdir / "result.json").read_bytes()
        code, _ = error_of(lab.subject.start(workdir))
        refused += code == 2 and kept == tuple((workdir / f).read_bytes() for f in ("metrics.jsonl", "result.json"))
    yield Row(
        "a finished run started again, its checkpoints deleted or set aside",
        f"{refused} of 2 refused, metrics and result as they were",
        refused == 2,
    )


def a_reader_beside(lab: Laboratory) -> Iterator[Row]:
    """Reads the newest checkpoint again and again while a run trains that keeps one."""
    import jax

    from experiments.common import runs
    from experiments.common.workdir import identity
    from lowcost.train.checkpoint import Checkpoints

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
                assert restored is not None
                steps.add(restored.step)
            except (AssertionError, ValueError, OSError):
                failed += 1
            finally:
                checkpoints.close()
    process.communicate()
    yield Row(
        "a reader beside a run that keeps 1 checkpoint",
        f"{reads} reads of {len(steps)} checkpoints, {failed} failed",
        failed == 0 and len(steps) > 2,
    )


def exchanged_checkpoints(lab: Laboratory) -> Iterator[Row]:
    """Checkpoints that are renamed, swapped, or of another seed's run; a result of another run."""
    other = lab.subject.directory / "other-seed"
    lab.subject.finish(other, "--seed", 5)

    def renamed(saved: Path, older: Path, newest: Path) -> None:
        newest.rename(saved / str(int(newest.name) + 10))

    def swapped(saved: Path, older: Path, newest: Path) -> None:
        older.rename(saved / "x")
        newest.rename(older)
        (saved / "x").rename(newest)

    def copied(saved: Path, older: Path, newest: Path) -> None:
        shutil.rmtree(newest)
        shutil.copytree(other / "checkpoints" / newest.name, newest)

    def result(saved: Path, older: Path, newest: Path) -> None:
        shutil.copy(other / "result.json", saved.parent / "result.json")

    cases = (renamed, swapped, copied, result)
    refused: list[Any] = []
    for case in cases:
        workdir = lab.copy(case.__name__)
        steps = [workdir / "checkpoints" / str(step) for step in steps_saved(workdir)]
        case(workdir / "checkpoints", *steps)
        for program in ("export", "--out", workdir / "net.onnx"), ("evaluate",):
            code, _ = error_of(lab.subject.start_program(*program, "--workdir", workdir))
            refused.append(code == 2 and not (workdir / "net.onnx").exists())
    yield Row(
        "checkpoints renamed, swapped or copied from another seed's run; its result.json",
        f"{sum(refused)} of {len(refused)} refused by export and evaluate, no file written",
        all(refused),
    )


FAULTS = (
    killed_in_system_calls,
    names_of_directories,
    unreadable_files,
    lost_checkpoints,
    a_reader_beside,
    exchanged_checkpoints,
)
TESTED_ELSEWHERE = (names_of_directories, unreadable_files, lost_checkpoints, a_reader_beside, exchanged_checkpoints)
"""What the short form leaves out."""
