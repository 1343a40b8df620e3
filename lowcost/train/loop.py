"""The training loop: epochs of steps with a progress bar, evaluation, a checkpoint an epoch, and a clean way out."""

import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import shard_batch
from lowcost.train.metrics_log import MetricsLog, epoch_line, epoch_row
from lowcost.train.progress import ProgressBar, Rate
from lowcost.train.state import TrainState, zero_metrics
from lowcost.train.step import PATIENCE, mean_metrics


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, jax.Array, jax.Array], TrainState],
    batch: Callable[[int], Sequence[jax.Array]],
    evaluate: Callable[[TrainState], dict[str, float] | None],
    *,
    steps_per_epoch: int,
    epochs: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    interruption: Interruption,
    console: Console,
    seconds: float = 0.0,
) -> TrainState:
    """Steps from `state.step` to the end of the last epoch, or to an interruption, with all of it saved.

    Every epoch ends with a checkpoint, then the evaluation, then a row in the log; whatever a kill leaves out is done
    first by the next call.

    Args:
        state: to start from; its buffers are donated.
        train_step: jitted, (state, images, labels) → state.
        batch: step → (images, labels), a pure function of the step.
        evaluate: state → mean metrics of all test images, or None when it was interrupted.
        steps_per_epoch, epochs: where to stop.
        log, checkpoints: where to write.
        interruption: looked at after every step.
        console: for the progress bar and a line an epoch.
        seconds: wall time spent before this call; rows and checkpoints hold the sum, compilation and evaluation in it.

    Returns:
        The last state.

    Raises:
        FloatingPointError: `PATIENCE` steps in a row had to be skipped; the checkpoints are those from before.
    """
    begin = time.monotonic() - seconds
    step, last = int(state.step), epochs * steps_per_epoch
    # Collectives of two programs in flight can take each other's threads on a CPU, and wait for one another forever.
    on_cpu = jax.default_backend() == "cpu"

    def save() -> None:
        checkpoints.save(step, state, {"seconds": time.monotonic() - begin})

    with ProgressBar(console, last, step) as progress:
        rate = Rate()
        while True:
            epoch = step // steps_per_epoch
            if step % steps_per_epoch == 0 and epoch > log.last_epoch():
                _check(state)
                save()
                train = mean_metrics(state.metrics)
                speed = rate.images_per_second()
                progress.note(step, "evaluating")
                test = evaluate(state)
                if test is None:
                    break
                row = epoch_row(epoch, step, train, test, speed, time.monotonic() - begin)
                log.append({**row, "skipped": int(state.skipped)})
                console.print(epoch_line(log.rows[-1], epochs), highlight=False)
                rate = Rate()
            if step == last:
                break
            images, labels = batch(step)  # while the step before is still being computed
            if on_cpu:
                jax.block_until_ready(state.step)
            state = train_step(state, images, labels)
            step += 1
            if rate.first or progress.due():
                jax.block_until_ready(state.step)
                _check(state)
                progress.show(step, mean_metrics(state.metrics), rate.images_per_second())
            rate.add(len(labels))
            if interruption.signal is not None:
                _check(state)
                save()
                break
    return state


def _check(state: TrainState) -> None:
    if state.skipped_in_a_row >= PATIENCE:
        raise FloatingPointError(
            f"step {state.step}: the loss or its gradient was not finite, for the {PATIENCE}th time in a row; "
            "look at the data, or train with a smaller learning rate or time step"
        )


def evaluate_all(
    eval_step: Callable[..., dict[str, jax.Array]],
    state: TrainState,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    mesh: Mesh,
    interruption: Interruption | None = None,
) -> dict[str, float] | None:
    """{"loss", "accuracy"} over all images, each counted once; None when interrupted.

    The last, smaller batch is filled up with images of weight zero, so that one compiled program serves all.
    """
    sums = zero_metrics()
    for some_images, some_labels, weight in _padded_batches(images, labels, batch_size):
        if interruption is not None and interruption.signal is not None:
            return None
        sums = eval_step(state, *shard_batch(mesh, some_images, some_labels, weight), sums)
        jax.block_until_ready(sums)
    return mean_metrics(sums)


def _padded_batches(images, labels, batch_size) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for start in range(0, len(labels), batch_size):
        some_images, some_labels = images[start : start + batch_size], labels[start : start + batch_size]
        missing = batch_size - len(some_labels)
        weight = np.concatenate([np.ones(len(some_labels), np.float32), np.zeros(missing, np.float32)])
        padding = [(0, missing)] + [(0, 0)] * (images.ndim - 1)
        yield np.pad(some_images, padding), np.pad(some_labels, padding[:1]), weight
