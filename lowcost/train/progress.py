"""How fast training goes, and a bar that shows it."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Rate:
    """Images per second since the first step, which may have compiled."""

    def __init__(self) -> None:
        self.first, self._images, self._begin = True, 0, 0.0

    def add(self, images: int) -> None:
        """A step with so many images is done."""
        if self.first:
            self.first, self._begin = False, time.monotonic()
        else:
            self._images += images

    def images_per_second(self) -> float | None:
        """None before the second step."""
        return self._images / (time.monotonic() - self._begin) if self._images else None


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

    def show(self, step: int, metrics: dict[str, float], speed: float | None) -> None:
        """After this step, the epoch's mean metrics and the speed."""
        note = f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}"
        self.note(step, note + (f"  {speed:,.0f} images/s" if speed else ""))

    def note(self, step: int, note: str) -> None:
        """After this step, a word instead."""
        self._bar.update(self._task, completed=step, note=note)
        self._shown = time.monotonic()
