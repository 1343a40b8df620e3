"""Provides small training runs to interrupt and damage, started as users start them, in separate processes."""

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

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PATIENCE = 240
"""Seconds after which a process that is waited for has failed."""


class Subject:
    """Starts runs on a few random images, all with the same data, configuration and compiled programs.

    Args:
        directory: the parent of all files.
        epochs: the length of every run. An epoch has 15 steps, more than one dispatch.
        flags: further flags of every run.
    """

    steps_per_epoch = 15

    def __init__(self, directory: Path, epochs: int, flags: tuple[Any, ...] = ()):
        self.directory, self.epochs, self.flags = directory, epochs, flags
        self.image_folder = directory / "image_folder"
        write_images(self.image_folder, train=60)
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(
        self,
        workdir: Path,
        *flags: Any,
        devices: int = 2,
        wrap: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """Starts training on the given number of virtual CPU devices, by the command `wrap` if given."""
        fixed = ("folder", "--data-dir", self.image_folder, "--epochs", self.epochs, "--batch-size", 8)
        fixed += ("--steps-per-block", 1, "--workdir", workdir, *self.flags)  # a network that compiles quickly
        return self.start_program(
            "train", *fixed, *flags, wrap=wrap, environment={"JAX_NUM_CPU_DEVICES": str(devices), **(environment or {})}
        )

    def start_program(
        self, name: str, *flags: Any, wrap: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Starts a program of `experiments`; a variable with an empty value is removed from the environment."""
        variables = self.environment | (environment or {})
        return subprocess.Popen(
            [*wrap, sys.executable, "-m", f"experiments.{name}", *map(str, flags)],
            cwd=ROOT,
            env={name: value for name, value in variables.items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_two(
        self, workdir: Path, *flags: Any, second: tuple[Any, ...] = (), devices: tuple[int, int] = (1, 1)
    ) -> list["subprocess.Popen[str]"]:
        """Starts two processes that train one network; `second` are further flags of the second process."""
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
        """Trains to the end and returns the content of result.json."""
        code, output = outcome(self.start(workdir, *flags, devices=devices))
        assert code == 0, f"training must end with 0, got {code}: {output}"
        return json.loads((workdir / "result.json").read_text())


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Holds what the fault tests share.

    Attributes:
        subject: starts runs.
        whole: the work directory of an uninterrupted run.
        digest: the digest of its final state.
        rng: chooses moments and places.
        short: few faults of each kind.
    """

    subject: Subject
    whole: Path
    digest: str
    rng: random.Random
    short: bool

    def copy(self, name: str) -> Path:
        """Returns a copy of the uninterrupted run, to be damaged."""
        return Path(shutil.copytree(self.whole, self.subject.directory / name))

    def recovers(self, workdir: Path) -> bool:
        """Returns whether the same command, run again, ends in the state of the uninterrupted run, bit for bit."""
        return self.subject.finish(workdir)["digest"] == self.digest

    def has_recovered(self, workdir: Path) -> bool:
        """Returns whether the result in this work directory is that of the uninterrupted run."""
        return json.loads((workdir / "result.json").read_text())["digest"] == self.digest


def write_images(directory: Path, size: int = 16, train: int = 24, test: int = 9, names=("dark", "light")) -> Path:
    """Writes images of random pixels, brighter in later classes, to directory/train and directory/test."""
    rng = np.random.default_rng(0)
    for part, count in {"train": train, "test": test}.items():
        for label, name in enumerate(names):
            (directory / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (size, size, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(directory / part / name / f"{i}.png")
    return directory


def exchange(one: Path, other: Path) -> None:
    """Swaps the names of two files or folders."""
    kept = one.with_name("exchanged")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def outcome(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Waits for a process and returns its exit status and output; one that does not end in time is killed."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def error_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Waits for a process and returns its exit status and its error, which must be one line without a traceback."""
    code, output = outcome(process)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, f"expected one line of error, got: {output}"
    assert "Traceback" not in output, f"expected one line of error, got: {output}"
    return code, lines[0]


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Returns when the condition holds or the process has ended.

    Raises:
        TimeoutError: neither happened in time; the process is killed.
    """
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not condition():
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"nothing happened for {PATIENCE} s: {outcome(process)[1]}")
        time.sleep(0.001)


def wait_until_epoch(epoch: int, workdir: Path, process: "subprocess.Popen[str]") -> None:
    """Returns when the given number of epochs is done or the process has ended."""
    wait_until(lambda: epochs_done(workdir) >= epoch, process)


def epochs_done(workdir: Path) -> int:
    """Returns the number of rows in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def steps_saved(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints, the newest last."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def contents(directory: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def stop(process: "subprocess.Popen[str]", *signals: signal.Signals) -> tuple[int, str, float]:
    """Sends signals in quick succession and returns the exit status, the output and the seconds until the exit."""
    begin = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    code, output = outcome(process)
    return code, output, time.monotonic() - begin
