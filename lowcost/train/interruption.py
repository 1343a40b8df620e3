"""Turns Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 into a stop request that the training loop polls."""

import os
import signal
from types import FrameType

from lowcost.train.processes import agree


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that ask a run to save and stop; SIGHUP only if it is not ignored, as under nohup."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, *hangup]


class Interruption:
    """Turns signals into a stop request: the loop finishes its dispatch and saves.

    A second Ctrl-C or SIGTERM leaves at once. A second SIGHUP or SIGUSR1 changes nothing: when a terminal closes, the
    shell and the kernel both send one.

    Attributes:
        signal: the number of the signal that came to any of the processes, as of the last `wanted`; or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._own: int | None = None

    def __enter__(self) -> "Interruption":
        """Takes over the `stop_signals`."""
        self._before = {number: signal.signal(number, self._note) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether a signal came to any of the processes, which all must ask at the same point."""
        self.signal = agree(self._own or 0) or None
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._own is not None and number in (signal.SIGINT, signal.SIGTERM):
            os._exit(128 + number)  # checkpoints are renamed into place when whole, so nothing saved is harmed
        self._own = self._own or number
