"""The training loop: steps with a progress bar, an evaluation and a checkpoint per epoch, and stops on request."""

import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import place, replicated, shard_batch
from lowcost.train.metrics_log import Metrics, MetricsLog, epoch_line, epoch_row
from lowcost.train.progress import ProgressBar, Rate
from lowcost.train.state import TrainState, zero_metrics
from lowcost.train.step import PATIENCE, mean_metrics

SAVE_SECONDS = 300
"""The longest time between two checkpoints, even within an epoch."""


def dispatch_max() -> int:
    """Returns the largest number of steps per dispatch of `fit`: small on a CPU, whose steps are slow."""
    return 8 if jax.default_backend() == "cpu" else 64


def fit(
    state: TrainState,
    train_steps: Callable[..., TrainState],
    batches: Callable[[int, int, int], Sequence[jax.Array]],
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

    Each epoch ends with a checkpoint, an evaluation and a row in the log, in this order. If a kill prevents one of
    them, the next call starts with it.

    Within a streak of skipped steps nothing is saved, so that the checkpoints before it stay: checkpoints and stop
    requests wait for the next step that is not skipped. If a stop request ends an evaluation within a streak, the run
    ends unsaved, and the next call repeats the steps since the last checkpoint. If the last epoch ends within a streak,
    its last state is saved, unless all its steps were skipped.

    Args:
        state: the initial state; its buffers are donated.
        train_steps: jitted, (state, n, *batches) → state, see `step.repeat`.
        batches: (step, n, next n) → the batches of n steps, pure functions of the step, see `feed`.
        evaluate: state → mean metrics of all test images; {} to skip the evaluation, None after a stop request.
        steps_per_epoch: the number of steps per epoch.
        epochs: the number of epochs.
        steps_max: the largest number of steps per dispatch; the actual one depends on their duration.
        log: receives one row per epoch.
        checkpoints: where to save.
        interruption: polled after every dispatch.
        console: for the progress bar and one line per epoch.
        seconds: wall time before this call, to which rows and checkpoints add this call's, compilation included.

    Returns:
        The last state.

    Raises:
        FloatingPointError: `PATIENCE` steps in a row, or all steps of the last epoch, were skipped. The checkpoints are
            those from before.
    """
    begin = time.monotonic() - seconds
    step, last = first_step(state), epochs * steps_per_epoch
    saved, streak, rate = time.monotonic(), skipped_in_a_row(state), Rate(steps_max)

    def save() -> None:
        nonlocal saved
        checkpoints.save(step, state, {"seconds": time.monotonic() - begin})
        saved = time.monotonic()

    def size(step: int) -> int:  # one step within a streak, since it could end and another begin within a dispatch
        return min(1 if streak else rate.dispatch, last - step, steps_per_epoch - step % steps_per_epoch)

    with ProgressBar(console, last, step) as progress:
        while True:
            epoch = step // steps_per_epoch
            if step % steps_per_epoch == 0 and epoch > log.last_epoch():
                if streak and step < last:
                    saved = -math.inf  # save at the end of the streak
                else:
                    save()
                figures = rate.speed()
                progress.note(step, "evaluating")
                test = evaluate(state)
                if test is None:
                    break
                figures |= {"seconds": time.monotonic() - begin, "skipped": int(np.asarray(state.skipped).sum())}
                log.append(epoch_row(epoch, step, mean_metrics(state.metrics), test, **figures))
                console.print(epoch_line(log.rows[-1], epochs), highlight=False)
                rate.start()
            if step == last:
                break
            n = size(step)
            batch = batches(step, n, size(step + n))
            state = rate.timed(train_steps, state, n, batch)
            step += n
            streak = skipped_in_a_row(state)
            _check_streak(state, streak, PATIENCE if step < last else min(PATIENCE, steps_per_epoch))
            progress.show(step, state.metrics, rate)
            if not streak:  # which ends within PATIENCE steps
                stop = interruption.stop_requested()
                if stop or time.monotonic() - saved > SAVE_SECONDS:
                    save()
                if stop:
                    break
    return state


def _check_streak(state: TrainState, streak: int, limit: int) -> None:
    if streak >= limit:
        what = (
            f"the loss and its gradient must be finite, got other values in the last {streak} step{'s' * (streak > 1)}"
        )
        remedy = "check the data, or train with a smaller learning rate or time step"
        raise FloatingPointError(f"step {first_step(state)}: {what}; {remedy}")


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
