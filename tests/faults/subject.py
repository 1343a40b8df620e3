"""A small training run to be disturbed, as users start it: `python -m experiments.train` in processes of its own."""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 240
"""Seconds after which whatever is waited for has failed."""


class Subject:
    """Runs on a few random pictures, all with the same data, configuration and compiled programs.

    Args:
        directory: where everything is.
        epochs: of every run; one has 15 steps, more than a dispatch.
    """

    steps_per_epoch = 15

    def __init__(self, directory: Path, epochs: int):
        self.directory, self.epochs, self.pictures = directory, epochs, directory / "pictures"
        write_pictures(self.pictures, train=60)
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def command(self, workdir: Path, *flags: Any) -> list[str]:
        """What a user would type."""
        fixed: list[Any] = ["folder", "--data-dir", self.pictures, "--epochs", self.epochs, "--batch-size", 8]
        fixed += ["--steps-per-block", 1]  # a network that starts quickly
        return [sys.executable, "-m", "experiments.train", *map(str, (*fixed, "--workdir", workdir, *flags))]

    def start(
        self,
        workdir: Path,
        *flags: Any,
        devices: int = 2,
        wrap: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """A process that trains, on so many virtual CPU devices, started by the command `wrap` if given."""
        return self._process(
            [*wrap, *self.command(workdir, *flags)], {"JAX_NUM_CPU_DEVICES": str(devices), **(environment or {})}
        )

    def start_program(
        self, name: str, *flags: Any, environment: dict[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Starts another program of `experiments`; a variable that is set to nothing is removed."""
        return self._process([sys.executable, "-m", f"experiments.{name}", *map(str, flags)], environment or {})

    def _process(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={name: value for name, value in (self.environment | environment).items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_two(
        self, workdir: Path, *flags: Any, second: tuple[Any, ...] = (), devices: tuple[int, int] = (1, 1)
    ) -> list["subprocess.Popen[str]"]:
        """Starts two processes that train as one, the second one with flags of its own too."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        cluster = {"coordinator": f"localhost:{port}", "num-processes": 2, "heartbeat-seconds": 10}
        flags = (*flags, *(f"--cluster.{name}={value}" for name, value in cluster.items()))
        return [
            self.start(workdir, *flags, "--cluster.process-id", i, *more, devices=devices[i])
            for i, more in enumerate(((), second))
        ]

    def finish(self, workdir: Path, *flags: Any, devices: int = 2) -> dict[str, Any]:
        """Train to the end.

        Returns:
            result.json, without what depends on the time.
        """
        code, output = outcome(self.start(workdir, *flags, devices=devices))
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {output}")
        return json.loads((workdir / "result.json").read_text())


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one fault: a sentence with figures, and whether they are what they must be."""

    fault: str
    figure: str
    fine: bool


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """What the faults share.

    Attributes:
        subject: the run that is disturbed.
        whole: work directory of one that was not.
        digest: of that one's final state.
        rng: of moments and places.
        short: few of each kind.
    """

    subject: Subject
    whole: Path
    digest: str
    rng: random.Random
    short: bool

    def copy(self, name: str) -> Path:
        """A finished run to be damaged."""
        return Path(shutil.copytree(self.whole, self.subject.directory / name))

    def is_whole(self, workdir: Path, *flags: Any, devices: int = 2) -> bool:
        """Whether the same command now ends with the state of the undisturbed run, bit for bit."""
        return self.subject.finish(workdir, *flags, devices=devices)["digest"] == self.digest


def write_pictures(directory: Path, size: int = 16, train: int = 24, test: int = 9, names=("dark", "light")) -> Path:
    """Pictures of random pixels, brighter in the second class, in directory/train and directory/test."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in {"train": train, "test": test}.items():
        for label, name in enumerate(names):
            (directory / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (size, size, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(directory / part / name / f"{i}.png")
    return directory


def outcome(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and output of a process, which is waited for."""
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def error_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and the one line that says what is wrong; fails if there is a traceback or another line."""
    code, output = outcome(process)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or "Traceback" in output:
        raise RuntimeError(f"expected one line of error, got: {output}")
    return code, lines[0]


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Whether it came true while the process lived."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"nothing happened for {PATIENCE} s: {outcome(process)[1]}")
        time.sleep(0.001)
    return condition()


def epochs_done(workdir: Path) -> int:
    """Rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def steps_saved(workdir: Path) -> list[int]:
    """The checkpoints that are there, the newest last."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written, or was when the process was killed."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def saving_anew(workdir: Path, before: list[int]) -> bool:
    """Other checkpoints are there than before, and one is being written."""
    return steps_saved(workdir) != before and is_saving(workdir)


def wait_until_epoch(epoch: int, workdir: Path, process: "subprocess.Popen[str]") -> None:
    """`wait_until` so many epochs are done."""
    wait_until(lambda: epochs_done(workdir) >= epoch, process)


def stop(process: "subprocess.Popen[str]", *signals: signal.Signals) -> tuple[int, str, float]:
    """Send the signals, one right after the other: exit status, output, seconds until it was gone."""
    begin = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    code, output = outcome(process)
    return code, output, time.monotonic() - begin
