"""Starts every program: flags, one-line errors, exit statuses, Ctrl-C, and output that nobody reads any more."""

import contextlib
import errno
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from experiments.common.interrupt import leave, on_interrupt, raise_interrupt
from lowcost.terminal import first_line, report_error
from lowcost.train.memory import keep_freed_memory

T = TypeVar("T")

FIXABLE, DIVERGED, PROCESS_GONE = 2, 3, 4
STATUSES = Path(__file__).with_name("exit_statuses.txt").read_text("utf-8")


def run(main: Callable[[Any], int | None], configuration: type, *, long: bool = False) -> NoReturn:
    """Parses the flags, calls `main`, and exits with its status.

    Args:
        main: configuration → exit status; None means 0. ValueError, OSError and ImportError are mistakes that the user
            can fix: they become one line on standard error, and status 2. So does a lack of memory on a device.
        configuration: a frozen dataclass, from which tyro makes the flags. The help begins with the docstring of the
            program and ends with the exit statuses.
        long: the program computes for a long time and writes its results to files. It keeps freed memory. It
            continues where its output cannot be written, which ends other programs with status 2.
    """
    output = _keep_writing()
    if long:
        keep_freed_memory()
    try:
        on_interrupt(raise_interrupt)
        code = main(_parse(configuration)) or 0
        sys.stdout.flush()
        if output.lost and not long and not code:
            raise output.lost
    except (ValueError, OSError, ImportError) as error:
        report_error(str(error) or type(error).__name__)
        code = FIXABLE
    except RuntimeError as error:
        if not (problem := lack_of_memory(error)):
            raise
        report_error(problem)
        code = FIXABLE
    except KeyboardInterrupt:
        leave()
    on_interrupt(leave)
    sys.exit(code)


def lack_of_memory(error: Exception) -> str:
    """Returns a line for an error of JAX that reports a lack of device memory, "" for others."""
    if not str(error).startswith("RESOURCE_EXHAUSTED"):
        return ""
    remedy = "use smaller batches or a smaller network, or more or larger devices"
    return f"the devices have too little memory ({first_line(error)}); {remedy}"


def _parse(configuration: type[T]) -> T:
    """Returns the configuration that the flags give; ends the program after --help and after wrong flags."""
    program = sys.modules["__main__"]
    name = f"python -m {program.__spec__.name}" if program.__spec__ else sys.argv[0]
    try:
        return tyro.cli(configuration, prog=name, description=program.__doc__, config=(tyro.conf.DisallowNone,))
    except SystemExit as end:
        if not end.code and {"-h", "--help"} & {*sys.argv}:
            print(STATUSES, end="")
        raise


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """Returns function(*arguments), called in a new process, which frees all its memory; Ctrl-C ends both."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        try:
            with _interrupts_held():
                processes = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn, initializer=_start))
                result = processes.submit(function, *arguments)
            return result.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back until the block has ended, and in the processes that it starts until `_start` has run.

    Processes inherit the mask. Here it does not suffice, since the signal may reach a thread of a library.
    """
    resource_tracker.ensure_running()  # where it starts, it clears the mask
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    on_interrupt(lambda number, _: held.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        on_interrupt(handler)
    if held:
        raise KeyboardInterrupt


def _start() -> None:
    keep_freed_memory()
    on_interrupt(signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _Output(io.FileIO):
    """A standard stream that drops what cannot be written, so that no print ends the program.

    Attributes:
        lost: the first error, other than that the reader has gone.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes, or drops, all of data."""
        try:
            return super().write(data) or len(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = self.lost or OSError(f"the output cannot be written ({error.strerror}); send it elsewhere")
            return len(data)


def _keep_writing() -> _Output:
    """Makes standard output and error streams that never raise, and returns the file of standard output.

    A character that the encoding of a stream lacks becomes a question mark.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # no file may take the number of a closed stream
        os.set_inheritable(number, True)
    os.close(number)
    stdout, stderr = (_Output(number, "w", closefd=False) for number in (1, 2))
    sys.stdout, sys.stderr = _text(stdout, sys.stdout), _text(stderr, sys.stderr)
    return stdout


def _text(output: _Output, before: Any) -> io.TextIOWrapper:
    """Returns a stream with the encoding and the buffering of another one, which is None if it was closed."""
    encoding = before.encoding if before else "utf-8"
    by_line = bool(before and (before.line_buffering or before.write_through))
    return io.TextIOWrapper(io.BufferedWriter(output), encoding, "replace", line_buffering=by_line)
