"""Starts every program: flags, one-line errors, exit statuses, Ctrl-C, and output that may go away.

`python -m experiments.NAME` ends with 0 when it is done, with 2 after one line that says what the user can fix, and
with 130 after Ctrl-C. `experiments.train` lists the other statuses of training.
"""

import errno
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from experiments.common.interrupt import leave, on_interrupt, raise_interrupt

T = TypeVar("T")


def run(main: Callable[[Any], int | None], configuration: type, *, long: bool = False) -> NoReturn:
    """Parses the flags, calls `main`, and exits with its status.

    Args:
        main: configuration → exit status; None stands for 0. What it raises for the user, ValueError, OSError or
            ImportError, becomes one line on standard error and status 2.
        configuration: a frozen dataclass, from which tyro makes the flags. The help begins with the docstring of the
            program.
        long: the program computes for long and writes its results to files: it asks for huge pages, and goes on
            without a word where its output cannot be written, which otherwise ends with status 2.
    """
    output = _keep_writing()
    if long:
        from experiments.common.huge_pages import use_huge_pages

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the program that starts again is guarded
        use_huge_pages()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    program = sys.modules["__main__"]
    name = f"python -m {program.__spec__.name}" if program.__spec__ else sys.argv[0]
    try:
        import tyro

        on_interrupt(raise_interrupt)
        code = main(tyro.cli(configuration, prog=name, description=program.__doc__)) or 0
        sys.stdout.flush()
        if output.lost and not long and not code:
            raise output.lost
    except (ValueError, OSError, ImportError) as error:
        from lowcost.terminal import warn

        warn(f"error: {str(error) or type(error).__name__}")
        code = 2
    except KeyboardInterrupt:
        leave()
    on_interrupt(leave)
    sys.exit(code)


def show(page: str) -> None:
    """Prints a page of Markdown, formatted for the terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(page))


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """Returns function(*arguments), called in a process of its own that leaves no memory behind; Ctrl-C ends both."""
    from concurrent.futures import ProcessPoolExecutor

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_by_interrupt) as processes:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, until the initializer has run
        try:
            result = processes.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return result.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _end_by_interrupt() -> None:
    on_interrupt(signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _Output(io.FileIO):
    """A standard stream that drops what cannot be written, so that no print ends the program.

    Attributes:
        lost: the first error, unless the reader has gone.
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
    """Makes standard output and error streams that never raise; what their encoding lacks becomes a question mark.

    Returns:
        Standard output.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # no file may take the number of a closed stream
        os.set_inheritable(number, True)
    os.close(number)
    outputs = {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        outputs[name] = _Output(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(outputs[name]),
            encoding=before.encoding if before else "utf-8",
            errors="replace",
            line_buffering=bool(before and (before.line_buffering or before.write_through)),
        )
        setattr(sys, name, stream)
    return outputs["stdout"]
