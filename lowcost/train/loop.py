"""Runs the training loop: steps with a progress bar, an evaluation and a checkpoint per epoch, and stops on request."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.feed import Feed
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import shard_batch
from lowcost.train.metrics_log import Metrics, MetricsLog, epoch_line, epoch_row
from lowcost.train.progress import ProgressBar, Rate
from lowcost.train.state import TrainState
from lowcost.train.step import PATIENCE, TrainSteps, mean_metrics

Validate = Callable[[TrainState], tuple[Metrics, TrainState]]

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
    validate: Validate | None = None,
    *,
    steps_per_epoch: int,
    epochs: int,
    steps_max: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    interruption: Interruption,
    console: Console,
    seconds: float = 0.0,
    patience: int | None = None,
) -> TrainState:
    """Trains from `state.step` to the end of the last epoch, or to a stop request, and saves the result.

    It calls `train_steps` repeatedly, each time for several steps; such a call is a dispatch. Each epoch ends with a
    validation, a checkpoint, an evaluation and a row in the log, in this order. If a kill prevents the evaluation or
    the row, the next `fit` from this checkpoint does both before it trains. Checkpoints and stop requests wait for the
    end of a streak of skipped steps.

    Args:
        state: the initial state; its buffers are donated.
        train_steps: jitted, (state, n, *batches) → state, see `step.repeat`.
        batches: (step, n, next n) → the batches of n steps, pure functions of the step, see `feed`. It can prepare the
            next n in the background.
        evaluate: state → mean metrics of all test images. It returns {} if it skips this epoch, and None after a stop
            request.
        validate: state → the mean metrics of all validation images, and the state, in which the present variables have
            become the best ones if they are; None without validation images.
        steps_per_epoch: the number of steps per epoch.
        epochs: the number of epochs.
        steps_max: the largest number of steps per dispatch; slow steps make dispatches smaller.
        log: receives one row per epoch.
        checkpoints: where to save.
        interruption: the source of stop requests, polled after every dispatch.
        console: for the progress bar and one line per epoch.
        seconds: wall time of the run before this call. Rows and checkpoints store this plus the time of this call,
            including compilation.
        patience: the number of epochs after the best one after which training ends; None for no early end, and for a
            state that keeps no best variables.

    Returns:
        The last state.

    Raises:
        FloatingPointError: `PATIENCE` steps in a row, or all steps of the last epoch, were skipped. The checkpoints
            from before these steps stay.
    """
    begin = time.monotonic() - seconds
    run = _Run(state, steps_per_epoch, epochs, patience, log, checkpoints, console, Rate(steps_max), begin)
    with ProgressBar(console, run.last, run.step) as progress:
        while run.finish_epoch(evaluate, validate, progress) and not run.ended():
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
    patience: int | None
    log: MetricsLog
    checkpoints: Checkpoints
    console: Console
    rate: Rate
    begin: float
    estimated: bool = False

    def __post_init__(self) -> None:
        self.first, self.last = steps_done(self.state), self.epochs * self.steps_per_epoch
        self.step = self.first
        self.streak, self.saved = skipped_in_a_row(self.state), time.monotonic()

    def ended(self) -> bool:
        """Returns whether training is complete: after the last step, or early."""
        return self.step == self.last or ended_early(self.state, self.step // self.steps_per_epoch, self.patience)

    def finish_epoch(
        self,
        evaluate: Callable[[TrainState], Metrics | None],
        validate: Validate | None,
        progress: ProgressBar,
    ) -> bool:
        """Validates, saves, evaluates and logs an epoch that has just ended; returns False after a stop request.

        If a stop request ends an evaluation within a streak, the run ends unsaved, and the next call repeats the steps
        since the last checkpoint. If the last epoch ends within a streak, its last state is saved.
        """
        epoch, more = divmod(self.step, self.steps_per_epoch)
        if more or epoch <= self.log.last_epoch():
            return True
        figures = self.rate.speed()
        progress.note(self.step, "evaluating")
        validation: Metrics = {}
        if validate is not None:
            validation, state = validate(self.state)
            self.state = self.state if self.step == self.first else state  # a restored state has its verdict
        if self.streak and not self.ended():
            self.saved = -math.inf  # save at the end of the streak
        else:
            self._save()
        test = evaluate(self.state)
        if test is None:
            return False
        figures |= {"seconds": time.monotonic() - self.begin, "skipped": int(np.asarray(self.state.skipped).sum())}
        parts = {"train": mean_metrics(self.state.metrics), "validation": validation, "test": test}
        self.log.append(epoch_row(epoch, self.step, parts, **figures))
        self.console.print(epoch_line(self.log.rows[-1], self.epochs), highlight=False)
        self._estimate()
        self.rate.start()
        return True

    def _estimate(self) -> None:
        """Prints once, after the first epoch whose steps were measured, how long the steps of the others will take."""
        left, step = self.epochs - self.step // self.steps_per_epoch, self.rate.seconds_per_step()
        if step is None or self.estimated or not left:
            return
        self.estimated = True
        seconds = left * self.steps_per_epoch * step
        duration = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        epochs = "the other epoch" if left == 1 else f"the other {left} epochs"
        self.console.print(f"about {duration} for the training steps of {epochs}", highlight=False)

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
        """Returns whether to stop; saves before that, and every `SAVE_SECONDS`; `finish_epoch` does both at its end."""
        if self.streak or not self.step % self.steps_per_epoch:  # a streak ends within PATIENCE steps
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


def ended_early(state: TrainState, epoch: int, patience: int | None) -> bool:
    """Returns whether the best epoch is at least `patience` epochs ago; with several seeds, each of their best epochs.

    Args:
        state: holds the best variables, unless patience is None.
        epoch: number of epochs done.
        patience: None for no early end.
    """
    return patience is not None and epoch - int(np.asarray(state.best["epoch"]).max()) >= patience


def steps_done(state: TrainState) -> int:
    """Returns state.step, the number of steps done; with several seeds it is the same for all."""
    return int(np.asarray(state.step).min())


def skipped_in_a_row(state: TrainState) -> int:
    """Returns state.skipped_in_a_row; with several seeds the largest one."""
    return int(np.asarray(state.skipped_in_a_row).max())


def evaluate_all(
    eval_step: Callable[..., dict[str, jax.Array]],
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    mesh: Mesh,
    interruption: Interruption | None = None,
) -> Metrics | None:
    """Returns the means {"loss", …} over all images, each counted once, or None after a stop request.

    The last, smaller batch is padded with images that the mask leaves out, so that one compiled program serves all.

    Args:
        eval_step: jitted, see `make_eval_step`.
        variables: the variables to evaluate.
        images: [N, *grid, C], of a dtype that `lowcost.data.to_unit_range` accepts.
        labels: [N], [N, K] or [N, *grid], of the kind that the loss takes.
        batch_size: the number of images per batch.
        mesh: the mesh of all devices.
        interruption: polled before every batch.

    Returns:
        Mean metrics; with several seeds one number for each.
    """
    sums: list[Mapping[str, np.ndarray]] = []
    started: list[Mapping[str, jax.Array]] = []
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size)
        mask = (rows < len(labels)).astype(np.float32)
        rows = rows.clip(max=len(labels) - 1)
        if interruption is not None and interruption.stop_requested():
            return None
        started.append(eval_step(variables, *shard_batch(mesh, images[rows], labels[rows], mask)))
        if len(started) > 1:  # the devices compute one batch while the next is sent to them
            sums.append(jax.device_get(started.pop(0)))
    sums += jax.device_get(started)
    return mean_metrics({name: np.sum([batch[name] for batch in sums], axis=0, dtype=float) for name in sums[0]})
