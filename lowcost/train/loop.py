"""The training loop: steps with a progress bar, an evaluation and a checkpoint per epoch, and stops on request."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.feed import Feed
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import place, replicated, shard_batch
from lowcost.train.metrics_log import Metrics, MetricsLog, epoch_line, epoch_row
from lowcost.train.progress import ProgressBar, Rate
from lowcost.train.state import TrainState, zero_metrics
from lowcost.train.step import PATIENCE, TrainSteps, mean_metrics

SAVE_SECONDS = 300
"""The longest time between two checkpoints, even within an epoch."""


def dispatch_max(mesh: Mesh) -> int:
    """Returns the largest number of steps per dispatch of `fit`: small on a CPU, whose steps are slow.

    Args:
        mesh: the devices.
    """
    return 8 if mesh.devices.flat[0].platform == "cpu" else 64


def fit(
    state: TrainState,
    train_steps: TrainSteps,
    batches: Feed,
    evaluate: Callable[[TrainState], Metrics | None],
    *,
    steps_per_epoch: int,
    epochs: int,
    steps_max: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    interruption: Interruption,
    console: Console,
    seconds: float = 0.0,
) -> TrainState:
    """Trains from `state.step` to the end of the last epoch, or to a stop request, and saves the result.

    It calls `train_steps` repeatedly, each time for several steps; such a call is a dispatch.
    Each epoch ends with a checkpoint, an evaluation and a row in the log, in this order. If a kill prevents the
    evaluation or the row, the next `fit` from this checkpoint does both before it trains. Checkpoints and stop requests
    wait for the end of a streak of skipped steps.

    Args:
        state: the initial state; its buffers are donated.
        train_steps: jitted, (state, n, *batches) → state, see `step.repeat`.
        batches: (step, n, next n) → the batches of n steps, pure functions of the step, see `feed`. It can prepare the
            next n in the background.
        evaluate: state → mean metrics of all test images. It returns {} if it skips this epoch, and None after a stop
            request.
        steps_per_epoch: the number of steps per epoch.
        epochs: the number of epochs.
        steps_max: the largest number of steps per dispatch; slow steps make dispatches smaller.
        log: receives one row per epoch.
        checkpoints: where to save.
        interruption: the source of stop requests, polled after every dispatch.
        console: for the progress bar and one line per epoch.
        seconds: wall time of the run before this call. Rows and checkpoints store this plus the time of this call,
            including compilation.

    Returns:
        The last state.

    Raises:
        FloatingPointError: `PATIENCE` steps in a row, or all steps of the last epoch, were skipped. The checkpoints
            from before these steps stay.
    """
    run = _Run(state, steps_per_epoch, epochs, log, checkpoints, console, Rate(steps_max), time.monotonic() - seconds)
    with ProgressBar(console, run.last, run.step) as progress:
        while run.finish_epoch(evaluate, progress) and run.step < run.last:
            run.dispatch(train_steps, batches, progress)
            if run.save_or_stop(interruption):
                break
    return run.state


@dataclass
class _Run:
    """A run within `fit`.

    Within a streak of skipped steps nothing is saved, so that the checkpoints before it stay. Checkpoints and stop
    requests wait for the next step that is not skipped.
    """

    state: TrainState
    steps_per_epoch: int
    epochs: int
    log: MetricsLog
    checkpoints: Checkpoints
    console: Console
    rate: Rate
    begin: float

    def __post_init__(self) -> None:
        self.step, self.last = first_step(self.state), self.epochs * self.steps_per_epoch
        self.streak, self.saved = skipped_in_a_row(self.state), time.monotonic()

    def finish_epoch(self, evaluate: Callable[[TrainState], Metrics | None], progress: ProgressBar) -> bool:
        """Saves, evaluates and logs an epoch that has just ended; returns False after a stop request.

        If a stop request ends an evaluation within a streak, the run ends unsaved, and the next call repeats the steps
        since the last checkpoint. If the last epoch ends within a streak, its last state is saved.
        """
        epoch, more = divmod(self.step, self.steps_per_epoch)
        if more or epoch <= self.log.last_epoch():
            return True
        if self.streak and self.step < self.last:
            self.saved = -math.inf  # save at the end of the streak
        else:
            self._save()
        figures = self.rate.speed()
        progress.note(self.step, "evaluating")
        test = evaluate(self.state)
        if test is None:
            return False
        figures |= {"seconds": time.monotonic() - self.begin, "skipped": int(np.asarray(self.state.skipped).sum())}
        self.log.append(epoch_row(epoch, self.step, mean_metrics(self.state.metrics), test, **figures))
        self.console.print(epoch_line(self.log.rows[-1], self.epochs), highlight=False)
        self.rate.start()
        return True

    def dispatch(self, train_steps: TrainSteps, batches: Feed, progress: ProgressBar) -> None:
        """Runs one dispatch; raises FloatingPointError if the streak is too long."""
        n = self._size(self.step)
        batch = batches(self.step, n, self._size(self.step + n))
        self.state = self.rate.timed(train_steps, self.state, n, batch)
        self.step += n
        self.streak = skipped_in_a_row(self.state)
        # The last state is not saved if no step of its epoch changed anything.
        if self.streak >= (PATIENCE if self.step < self.last else min(PATIENCE, self.steps_per_epoch)):
            steps = f"{self.streak} step{'s' * (self.streak > 1)}"
            what = f"the loss and its gradient must be finite, got other values in the last {steps}"
            remedy = "check the data, or train with a smaller learning rate or time step"
            raise FloatingPointError(f"step {self.step}: {what}; {remedy}")
        progress.show(self.step, self.state.metrics, self.rate)

    def save_or_stop(self, interruption: Interruption) -> bool:
        """Returns whether to stop; saves before that, and every `SAVE_SECONDS`."""
        if self.streak:  # which ends within PATIENCE steps
            return False
        stop = interruption.stop_requested()
        if stop or time.monotonic() - self.saved > SAVE_SECONDS:
            self._save()
        return stop

    def _save(self) -> None:
        self.checkpoints.save(self.step, self.state, {"seconds": time.monotonic() - self.begin})
        self.saved = time.monotonic()

    def _size(self, step: int) -> int:
        """Returns the steps of a dispatch; 1 within a streak, which could end and another begin within a dispatch."""
        n = 1 if self.streak else self.rate.dispatch
        return min(n, self.last - step, self.steps_per_epoch - step % self.steps_per_epoch)


def first_step(state: TrainState) -> int:
    """Returns state.step, the number of steps done; with several seeds it is the same for all."""
    return int(np.asarray(state.step).min())


def skipped_in_a_row(state: TrainState) -> int:
    """Returns state.skipped_in_a_row; with several seeds the largest one."""
    return int(np.asarray(state.skipped_in_a_row).max())


def evaluate_all(
    eval_step: Callable[..., dict[str, jax.Array]],
    state: TrainState,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    mesh: Mesh,
    interruption: Interruption | None = None,
) -> Metrics | None:
    """Returns the means {"loss", "accuracy"} over all images, each counted once, or None after a stop request.

    The last, smaller batch is padded with images of weight zero, so that one compiled program serves all.

    Args:
        eval_step: jitted, see `make_eval_step`.
        state: the state to evaluate.
        images: [N, *grid, C], of a dtype that `step.to_unit_range` accepts.
        labels: int32 [N].
        batch_size: the number of images per batch.
        mesh: the mesh of all devices.
        interruption: polled before every batch.

    Returns:
        Mean metrics; with several seeds one number for each.
    """
    zero = np.zeros(state.step.shape, np.float32)
    sums = {name: place(zero, replicated(mesh)) for name in zero_metrics()}
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < len(labels)).astype(np.float32)
        rows = rows.clip(max=len(labels) - 1)
        if interruption is not None and interruption.stop_requested():
            return None
        sums = eval_step(state, *shard_batch(mesh, images[rows], labels[rows], weight), sums)
        jax.block_until_ready(sums)
    return mean_metrics(sums)
