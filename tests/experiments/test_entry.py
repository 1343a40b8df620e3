"""Tests what all programs share: Ctrl-C, lost output, terminals that lack characters, and errors in one line."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments import table2
from experiments.common import outcome
from experiments.common.config import flags

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' in path.read_text()
)
SMALL = ("digits", "--train-images", 200, "--batch-size", 20, "--steps-per-block", 1, "--width", 4, 8)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Returns a function that starts `python -m experiments.NAME`; processes share a cache of compiled programs."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(name, *arguments, before=(), options=(), environment=None, **streams):
        return subprocess.Popen(
            [*before, sys.executable, *options, "-m", f"experiments.{name}", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | settings | (environment or {}),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", **streams},
        )

    return start


@pytest.mark.parametrize(
    ("name", "module"),
    [
        *[(name, "tyro.") for name in ("train", "data", "spectra", "evaluate", "table2", "deploy")],
        *[("train", "jax._src.core"), ("evaluate", "jax._src.core"), ("data", "sklearn.utils")],
    ],
)
def test_ctrl_c_while_importing(start, tmp_path, name, module):
    """A program that gets the signal right after importing such a module ends with one line and status 130."""
    arguments = {"train": ("digits",), "data": ("digits",), "table2": (), "deploy": ("run",)}
    given = arguments.get(name, ("--workdir", tmp_path / "run"))
    process = start(name, *given, options=("-X", "importtime"))
    assert any(line.rpartition("|")[2].strip().startswith(module) for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out, lines) == (130, "", ["stopped by Ctrl-C"])


def test_ctrl_c_while_computing(start, tmp_path):
    process = start("autotune", "--short", "--features", 2**12, "--rounds", 1, "--out", tmp_path / "methods.json")
    assert process.stdout.readline()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")
    assert [path.name for path in tmp_path.iterdir()] == ["methods.json"]


PROGRAM = """
import dataclasses, time
import jax
from experiments.common import entry
@dataclasses.dataclass(frozen=True)
class Config:
    pass
def main(config):
    print("begun", flush=True)
    entry.in_a_process(time.sleep, 100)
if __name__ == "__main__":
    entry.run(main, Config)
"""


def test_a_lack_of_memory_is_one_line(tmp_path):
    """A real allocation of 2⁴⁵ numbers fails."""
    (tmp_path / "program.py").write_text(PROGRAM.replace("time.sleep, 100", "jax.numpy.zeros, 2**45"))
    command = [sys.executable, tmp_path / "program.py"]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: the devices have too little memory \(RESOURCE_EXHAUSTED.*\); use smaller .*\n", result.stderr
    )


@pytest.mark.parametrize(("wait", "kill"), [(0, os.killpg), (1.5, os.killpg), (1.5, os.kill)])
def test_ctrl_c_while_a_process_of_its_own_computes(tmp_path, wait, kill):
    """The signal reaches all processes, as from a terminal, or only the parent, which ends after its child."""
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(wait)
    kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)  # the child has the same stderr
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")


SIGNAL_AT_START = """
import multiprocessing.util as util, os, signal, threading
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
spawn = util.spawnv_passfds
def spawnv_passfds(*arguments):
    if any(b"spawn_main" in os.fsencode(part) for part in arguments[1]):
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    return spawn(*arguments)
util.spawnv_passfds = spawnv_passfds
"""


def test_ctrl_c_while_a_process_of_its_own_starts(tmp_path):
    """A thread takes the signal that the main thread holds back."""
    begin = "if __name__"
    program = PROGRAM.replace(begin, "if __name__ == '__main__':\n" + textwrap.indent(SIGNAL_AT_START, "    ") + begin)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, tmp_path / "program.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "stopped by Ctrl-C\n")


def test_an_interrupt_that_is_ignored_stays_ignored(start, tmp_path):
    """A program that a script has started in the background keeps ignoring SIGINT."""
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = start("table1", "--out", tmp_path / "table1", before=command, options=("-X", "importtime"))
    assert any("tyro" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_letters_that_a_terminal_lacks_are_replaced(start, tmp_path, settings):
    environment = {"PYTHONCOERCECLOCALE": "0", **settings}
    process = start("table1", "--out", tmp_path / "table1", environment=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "O(m?c?)" in out
    assert "O(m²c²)" in (tmp_path / "table1.md").read_text("utf-8")


def test_lost_output_is_an_error_where_it_is_the_result(start, tmp_path):
    with open("/dev/full", "w") as full:
        _, err = (process := start("table1", "--out", tmp_path / "t", stdout=full)).communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(r"error: the output cannot be written \(No space left on device\); .*\n", err)
    process = start("table1", "--out", tmp_path / "t", before=["sh", "-c", '"$@" >&- 2>&-', "sh"])
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", 0)


def test_training_continues_without_output_and_stops_at_a_hangup(start, tmp_path):
    """Training continues after its reader ends, as `head -1` does, and saves when the terminal closes."""
    with open("/dev/full", "w") as full:
        process = start("train", *SMALL, "--epochs", 50, "--workdir", tmp_path, stderr=full)
        assert process.stdout.readline().startswith("epoch  1/50 ")
        process.stdout.close()
        while len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 4 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    assert 4 <= len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 50
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()]
    assert max(steps) >= 40


def test_lost_output_is_no_error_where_files_hold_the_results(start, tmp_path):
    """Plans finished runs, which takes no time, in place of programs that compute for hours."""
    config = table2.Config(architectures=("resnet",), epochs=1, workdir=tmp_path)
    (run,) = table2.runs(config)
    run.directory().mkdir()
    (run.directory() / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with open("/dev/full", "w") as full:
        process = start("table2", "--dry-run", *flags(config), stdout=full)
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)


def test_the_work_directory_is_never_cut(capsys):
    """Even a narrow terminal shows the whole path."""
    result = {"architecture": "a", "width": "A", "dataset": "d", "seeds": 1, "test_accuracy_std": None, "weights": 1}
    result |= {
        "test_accuracy": 1.0,
        "test_images": 1,
        "epochs": 1,
        "train_seconds": 1.0,
        "images_per_second": None,
        "skipped_steps": 0,
    }
    workdir = Path("/somewhere") / ("long-" * 20)
    outcome.print_result(Console(width=40, soft_wrap=True, markup=False), result | {"peak_memory_gib": 1.0}, workdir)
    assert f"work directory: {workdir}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_every_program_starts_by_the_same_entry(name):
    """No program parses its flags or catches its errors by itself."""
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    assert re.search(r'\nif __name__ == "__main__":\n    entry\.run\(main, \w+(, long=True)?\)\n$', text)
    assert "tyro.cli" not in text
