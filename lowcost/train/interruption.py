"""Ctrl-C and SIGTERM, turned into a wish that the training loop grants."""

import os
import signal
from types import FrameType

from lowcost.train.processes import agree


class Interruption:
    """Ctrl-C and SIGTERM as a wish to stop: the loop finishes its dispatch and saves; a second one leaves at once.

    Attributes:
        signal: the number of the signal that came to any of the processes, as of the last `wanted`; or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._own: int | None = None

    def __enter__(self) -> "Interruption":
        """Take over the two signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether a signal came to any of the processes, which all must ask at the same point."""
        self.signal = agree(self._own or 0) or None
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._own is not None:
            os._exit(128 + number)  # checkpoints are renamed into place when whole, so nothing saved is harmed
        self._own = number
