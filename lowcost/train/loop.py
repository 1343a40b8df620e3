"""The training loop: epochs of steps with a progress bar, evaluation, a checkpoint an epoch, and a clean way out."""

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
from lowcost.train.processes import agree
from lowcost.train.progress import ProgressBar, Rate
from lowcost.train.state import TrainState, zero_metrics
from lowcost.train.step import PATIENCE, mean_metrics

DISPATCH_SECONDS = 1.0
"""What the device is given to do at once: long against what Python needs, short against the patience with a signal."""
SAVE_SECONDS = 300
"""The longest time without a checkpoint, however long an epoch is."""


def most_steps() -> int:
    """The largest number of steps that `fit` puts into one dispatch: few on a CPU, whose steps are slow."""
    return 8 if jax.default_backend() == "cpu" else 64


def fit(
    state: TrainState,
    train_steps: Callable[..., TrainState],
    batches: Callable[[int, int, int], Sequence[jax.Array]],
    evaluate: Callable[[TrainState], Metrics | None],
    *,
    steps_per_epoch: int,
    epochs: int,
    most: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    interruption: Interruption,
    console: Console,
    seconds: float = 0.0,
) -> TrainState:
    """Steps from `state.step` to the end of the last epoch, or to an interruption, with all of it saved.

    Every epoch ends with a checkpoint, then the evaluation, then a row in the log; whatever a kill leaves out is done
    first by the next call.

    Within a streak of skipped steps nothing is saved, so that the checkpoints from before it stay: checkpoints and
    interruptions wait for the next step that counts. If the evaluation is interrupted within a streak, the run ends
    unsaved, and the next call repeats the steps since the last checkpoint. If the run itself ends within a streak, its
    last state is saved, unless the whole last epoch was skipped.

    Args:
        state: to start from; its buffers are donated.
        train_steps: jitted, (state, n, *batches) → state, see `step.repeat`.
        batches: (step, n, next n) → the batches of n steps, pure functions of the step, see `feed`.
        evaluate: state → mean metrics of all test images, {} where there is nothing to evaluate, or None when it was
            interrupted.
        steps_per_epoch, epochs: where to stop.
        most: steps in a dispatch at most; how many there are follows from what they take.
        log, checkpoints: where to write.
        interruption: looked at after every dispatch.
        console: for the progress bar and a line an epoch.
        seconds: wall time spent before this call; rows and checkpoints hold the sum, compilation and evaluation in it.

    Returns:
        The last state.

    Raises:
        FloatingPointError: `PATIENCE` steps in a row, or all steps of the last epoch, were skipped; the checkpoints are
            those from before.
    """
    begin = time.monotonic() - seconds
    step, last = first_step(state), epochs * steps_per_epoch
    saved = time.monotonic()
    dispatch, calls = 1, 0  # steps in a dispatch; the first one compiles, the second one is timed
    streak = skipped_in_a_row(state)

    def save() -> None:
        nonlocal saved
        checkpoints.save(step, state, {"seconds": time.monotonic() - begin})
        saved = time.monotonic()

    def size(step: int) -> int:
        longest = 1 if streak else dispatch  # a streak must not end and another begin within a dispatch
        return min(longest, last - step, steps_per_epoch - step % steps_per_epoch)

    with ProgressBar(console, last, step) as progress:
        rate = Rate(compiling=True)
        while True:
            epoch = step // steps_per_epoch
            if step % steps_per_epoch == 0 and epoch > log.last_epoch():
                if not streak or step == last:
                    save()
                else:
                    saved = -math.inf  # save at the end of the streak
                train = mean_metrics(state.metrics)
                speed = rate.close()
                progress.note(step, "evaluating")
                test = evaluate(state)
                if test is None:
                    break
                skipped = int(np.asarray(state.skipped).sum())  # by NumPy: no program for the devices
                total = time.monotonic() - begin
                log.append(epoch_row(epoch, step, train, test, **speed, seconds=total, skipped=skipped))
                console.print(epoch_line(log.rows[-1], epochs), highlight=False)
                rate = Rate(compiling=calls == 0)
            if step == last:
                break
            n = size(step)
            batch = batches(step, n, size(step + n))
            started = time.monotonic()
            state = train_steps(state, np.int32(n), *batch)
            # One program at a time: on a CPU the collectives of two can take each other's threads, and wait for ever.
            jax.block_until_ready(state)
            busy = time.monotonic() - started
            step += n
            calls += 1
            rate.add(n * math.prod(batch[1].shape[1:]), busy)
            if calls == 2:
                dispatch = agree(min(math.ceil(DISPATCH_SECONDS * n / busy), most))
            streak = skipped_in_a_row(state)
            if streak >= PATIENCE or (step == last and streak >= steps_per_epoch):
                what = f"the loss or its gradient was not finite in the last {streak} step{'s' * (streak > 1)}"
                remedy = "look at the data, or train with a smaller learning rate or time step"
                raise FloatingPointError(f"step {first_step(state)}: {what}; {remedy}")
            if progress.due():
                progress.show(step, mean_metrics(state.metrics), rate.images_per_second())
            if streak:  # it ends within PATIENCE steps
                continue
            interrupted = interruption.wanted()
            if interrupted or time.monotonic() - saved > SAVE_SECONDS:
                save()
            if interrupted:
                break
    return state


def first_step(state: TrainState) -> int:
    """state.step, the number of steps done, which with several seeds is the same for all."""
    return int(np.asarray(state.step).min())


def skipped_in_a_row(state: TrainState) -> int:
    """state.skipped_in_a_row; with several seeds the largest of them."""
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
    """{"loss", "accuracy"} over all images, each counted once; None when interrupted.

    The last, smaller batch is filled up with images of weight zero, so that one compiled program serves all.

    Args:
        eval_step: jitted, see `make_eval_step`.
        state: to evaluate.
        images: [N, *grid, C], of a dtype that `step.to_unit_range` accepts.
        labels: int32 [N].
        batch_size: images at once.
        mesh: of all devices.
        interruption: looked at after every batch.

    Returns:
        Mean metrics, of each seed where there are several.
    """
    nothing = np.zeros(state.step.shape, np.float32)
    sums = {name: place(nothing, replicated(mesh)) for name in zero_metrics()}
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < len(labels)).astype(np.float32)
        rows = rows.clip(max=len(labels) - 1)
        if interruption is not None and interruption.wanted():
            return None
        sums = eval_step(state, *shard_batch(mesh, images[rows], labels[rows], weight), sums)
        jax.block_until_ready(sums)
    return mean_metrics(sums)
