"""Ends a program at Ctrl-C with one line and status 130.

Imports three small modules only, so that it works almost from the start of Python.
"""

import os
import signal
import sys


def guard_imports() -> None:
    """Lets Ctrl-C end the process at once from now on."""
    on_interrupt(leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.unraisablehook = _unraisable


def on_interrupt(handler) -> None:
    """Sets the handler of SIGINT, unless SIGINT is ignored, as in a program that a script runs in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def leave(*_: object) -> None:
    """Ends the process at once, with one line on standard error and status 130."""
    try:
        os.write(2, b"stopped by Ctrl-C\n")
        sys.stdout.flush()
    finally:
        os._exit(128 + signal.SIGINT)


def raise_interrupt(_: int, frame) -> None:
    """Raises KeyboardInterrupt; ends the process instead during an import, whose code may swallow the exception."""
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _unraisable(event) -> None:
    """Ends the process if KeyboardInterrupt was raised in a finalizer, where Python would only print it."""
    if isinstance(event.exc_value, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(event)
