"""Measures the speed of training, and shows a progress bar."""

import math
import time
from collections.abc import Mapping

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowcost.train.feed import Batches
from lowcost.train.processes import process_max
from lowcost.train.state import TrainState
from lowcost.train.step import TrainSteps, mean_metrics

DISPATCH_SECONDS = 1.0
"""The duration of a dispatch: long compared with Python's overhead, short enough to react to a signal."""
REFRESH_SECONDS = 0.5


class Rate:
    """Measures the speed of an epoch, without the first dispatch of the run, which compiles.

    Args:
        steps_max: the largest number of steps per dispatch.

    Attributes:
        dispatch: the number of steps per dispatch: 1 at first, then about as many as take `DISPATCH_SECONDS`.
    """

    def __init__(self, steps_max: int):
        self._steps_max, self._dispatches, self.dispatch = steps_max, 0, 1
        self.start()

    def start(self) -> None:
        """Starts an epoch."""
        self._steps, self._images, self._busy, self._begin = 0, 0, 0.0, time.monotonic()

    def timed(self, train_steps: TrainSteps, state: TrainState, n: int, batch: Batches) -> TrainState:
        """Returns the state after n steps, and measures their time."""
        begin = time.monotonic()
        state = train_steps(state, np.int32(n), *batch)
        # One program at a time, since on a CPU the collectives of two can deadlock over their threads.
        jax.block_until_ready(state)
        busy = time.monotonic() - begin
        self._dispatches += 1
        if self._dispatches == 1:
            self.start()
            return state
        self._steps += n
        self._images += n * math.prod(batch[-1].shape[1:])
        self._busy += busy
        if self._dispatches == 2:
            self.dispatch = process_max(min(math.ceil(DISPATCH_SECONDS * n / busy), self._steps_max))
        return state

    def speed(self) -> dict[str, float | None]:
        """Returns images per second and the share of the time in steps; None before the first measured dispatch."""
        seconds = time.monotonic() - self._begin
        figures = {"images_per_second": self._images / seconds, "share_in_steps": self._busy / seconds}
        return {name: figure if self._images else None for name, figure in figures.items()}

    def seconds_per_step(self) -> float | None:
        """Returns the time of a step of this epoch; None before the first measured dispatch."""
        return self._busy / self._steps if self._steps else None


class ProgressBar(Progress):
    """Shows steps, loss, accuracy, images per second and remaining time on a terminal; nothing elsewhere.

    Args:
        console: where to draw.
        last: the number of steps of the run.
        step: the number of steps done before.
    """

    def __init__(self, console: Console, last: int, step: int):
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.add_task("steps", total=last, completed=step, note="compiling")
        self._shown = 0.0

    def show(self, step: int, sums: Mapping[str, jax.Array], rate: Rate) -> None:
        """Shows the epoch's mean metrics and the speed, at most every `REFRESH_SECONDS`, since it reads the device."""
        if time.monotonic() - self._shown > REFRESH_SECONDS:
            means, speed = mean_metrics(sums), rate.speed()["images_per_second"]
            note = f"loss {np.mean(means['loss']):.3f}"
            if "accuracy" in means:
                note += f"  accuracy {np.mean(means['accuracy']):.1%}"
            self.note(step, note + (f"  {speed:,.0f} images/s" if speed else ""))

    def note(self, step: int, note: str) -> None:
        """Shows a note after this step."""
        self.update(self._task, completed=step, note=note)
        self._shown = time.monotonic()
