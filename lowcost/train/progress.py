"""How fast training goes, and a bar that shows it."""

import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowcost.train.metrics_log import Metrics


class Rate:
    """How fast an epoch goes.

    Args:
        compiling: leave out the first dispatch.
    """

    def __init__(self, compiling: bool):
        self._compiling, self._images, self._busy, self._begin = compiling, 0, 0.0, time.monotonic()

    def add(self, images: int, busy: float) -> None:
        """A dispatch with so many images is done, and took the device so many seconds."""
        if self._compiling:
            self._compiling, self._begin = False, time.monotonic()
        else:
            self._images += images
            self._busy += busy

    def images_per_second(self) -> float | None:
        """None before the first dispatch that counts."""
        return self._images / self._passed() if self._images else None

    def close(self) -> dict[str, float | None]:
        """For the log: images per second, and the share of the time that was spent in steps and not around them."""
        share = self._busy / self._passed() if self._images else None
        return {"images_per_second": self.images_per_second(), "share_in_steps": share}

    def _passed(self) -> float:
        return time.monotonic() - self._begin


class ProgressBar:
    """Steps, loss, accuracy, images per second and time left, on a terminal; nothing elsewhere.

    Args:
        console: where to draw.
        last: steps in all.
        step: steps done before.
    """

    def __init__(self, console: Console, last: int, step: int):
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("steps", total=last, completed=step, note="compiling")
        self._shown = 0.0

    def __enter__(self) -> "ProgressBar":
        """Draw."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear."""
        self._bar.stop()

    def due(self) -> bool:
        """Whether the last news is half a second old: to know more means to wait for the device."""
        return time.monotonic() - self._shown > 0.5

    def show(self, step: int, metrics: Metrics, speed: float | None) -> None:
        """After this step, the epoch's mean metrics and the speed."""
        note = f"loss {np.mean(metrics['loss']):.3f}  accuracy {np.mean(metrics['accuracy']):.1%}"
        self.note(step, note + (f"  {speed:,.0f} images/s" if speed else ""))

    def note(self, step: int, note: str) -> None:
        """After this step, a word instead."""
        self._bar.update(self._task, completed=step, note=note)
        self._shown = time.monotonic()
