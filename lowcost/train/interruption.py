"""Turns Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 into a stop request that the training loop polls."""

import os
import signal
from types import FrameType

from lowcost.train.processes import process_max


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that ask a run to save and stop.

    SIGHUP and SIGINT are left out where they are ignored, as under nohup and in the background of a script.
    """
    of_terminal = [x for x in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(x) is not signal.SIG_IGN]
    return [signal.SIGTERM, signal.SIGUSR1, *of_terminal]


class Interruption:
    """Turns signals into a stop request, after which the loop finishes its dispatch and saves.

    A second Ctrl-C or SIGTERM ends the process at once. A second SIGHUP or SIGUSR1 changes nothing, since the shell and
    the kernel both send one when a terminal closes.

    Attributes:
        signal: the number of a signal that any process received, as of the last `stop_requested`; or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._own: int | None = None

    def __enter__(self) -> "Interruption":
        """Installs handlers for the `stop_signals`."""
        self._before = {number: signal.signal(number, self._note) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_requested(self) -> bool:
        """Returns whether any process received a signal; all processes must call it at the same point."""
        self.signal = process_max(self._own or 0) or None
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._own is not None and number in (signal.SIGINT, signal.SIGTERM):
            os._exit(128 + number)  # safe, since a checkpoint is renamed into place once it is complete
        self._own = self._own or number
