"""Measures the speed of training, and shows a progress bar."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowcost.train.step import mean_metrics

REFRESH_SECONDS = 0.5


class Rate:
    """Measures the speed of an epoch, without the first dispatch of the run, which compiles."""

    def __init__(self) -> None:
        self.dispatches = 0
        self.start()

    def start(self) -> None:
        """Starts an epoch."""
        self._images, self._busy, self._begin = 0, 0.0, time.monotonic()

    def add(self, images: int, busy: float) -> None:
        """Adds a dispatch with its number of images and its seconds on the device."""
        self.dispatches += 1
        if self.dispatches == 1:
            self.start()
        else:
            self._images += images
            self._busy += busy

    def speed(self) -> dict[str, float | None]:
        """Returns images per second and the share of the time in steps; None before the first measured dispatch."""
        seconds = time.monotonic() - self._begin
        figures = {"images_per_second": self._images / seconds, "share_in_steps": self._busy / seconds}
        return {name: figure if self._images else None for name, figure in figures.items()}


class ProgressBar:
    """Shows steps, loss, accuracy, images per second and remaining time on a terminal; nothing elsewhere.

    Args:
        console: where to draw.
        last: the number of steps of the run.
        step: the number of steps done before.
    """

    def __init__(self, console: Console, last: int, step: int):
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("steps", total=last, completed=step, note="compiling")
        self._shown = 0.0

    def __enter__(self) -> "ProgressBar":
        """Draws the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        self._bar.stop()

    def show(self, step: int, sums: Mapping[str, jax.Array], rate: Rate) -> None:
        """Shows the epoch's mean metrics and the speed, at most every `REFRESH_SECONDS`, since it reads the device."""
        if time.monotonic() - self._shown > REFRESH_SECONDS:
            means, speed = mean_metrics(sums), rate.speed()["images_per_second"]
            note = f"loss {np.mean(means['loss']):.3f}  accuracy {np.mean(means['accuracy']):.1%}"
            self.note(step, note + (f"  {speed:,.0f} images/s" if speed else ""))

    def note(self, step: int, note: str) -> None:
        """Shows a note after this step."""
        self._bar.update(self._task, completed=step, note=note)
        self._shown = time.monotonic()
