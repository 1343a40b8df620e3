"""The training loop: epochs of steps with a progress bar, evaluation, a checkpoint an epoch, and a clean way out."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.mesh import shard_batch
from lowcost.train.state import TrainState, zero_metrics
from lowcost.train.step import mean_metrics

Row = dict[str, Any]


class Interruption:
    """Ctrl-C and SIGTERM as a wish to stop: the loop finishes its step and saves; a second one leaves at once.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Interruption":
        """Take over the two signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)  # checkpoints are renamed into place when whole, so nothing saved is harmed
        self.signal = number


class MetricsLog:
    """metrics.jsonl: one line an epoch, read back on resume.

    Args:
        path: the file; made with the first row.
        epochs: rows of later epochs are dropped: they ran after the checkpoint that is gone on from.
    """

    def __init__(self, path: Path, epochs: int):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [row for row in map(_parse, lines) if row is not None and row["epoch"] <= epochs]
        if len(self.rows) != len(lines):
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            replacement.replace(path)

    def append(self, row: Row) -> None:
        """Add one epoch."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


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
) -> tuple[TrainState, float]:
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
        seconds: wall time spent before this call.

    Returns:
        The last state, and the wall time spent in all, compilation and evaluation included.
    """
    begin = time.monotonic() - seconds
    step, last = int(state.step), epochs * steps_per_epoch
    # Collectives of two programs in flight can take each other's threads on a CPU, and wait for one another forever.
    on_cpu = jax.default_backend() == "cpu"

    def save() -> None:
        checkpoints.save(step, state, {"seconds": time.monotonic() - begin})

    with _progress(console, last, step) as progress:
        rate = _Rate()
        while True:
            epoch = step // steps_per_epoch
            if step % steps_per_epoch == 0 and epoch > len(log.rows):
                save()
                train = mean_metrics(state.metrics)
                speed = rate.images_per_second()
                test = evaluate(state)
                if test is None:
                    break
                log.append(_row(epoch, step, train, test, speed, time.monotonic() - begin))
                console.print(_line(log.rows[-1], epochs), highlight=False)
                rate = _Rate()
            if step == last:
                break
            images, labels = batch(step)  # while the step before is still being computed
            if on_cpu:
                jax.block_until_ready(state.step)
            state = train_step(state, images, labels)
            step += 1
            if rate.first or progress.due():
                jax.block_until_ready(state.step)
                progress.show(step, mean_metrics(state.metrics), rate.images_per_second())
            rate.add(len(labels))
            if interruption.signal is not None:
                save()
                break
    return state, time.monotonic() - begin


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


class _Rate:
    """Images per second since the first step, which may have compiled."""

    def __init__(self) -> None:
        self.first, self._images, self._begin = True, 0, 0.0

    def add(self, images: int) -> None:
        if self.first:
            self.first, self._begin = False, time.monotonic()
        else:
            self._images += images

    def images_per_second(self) -> float | None:
        return self._images / (time.monotonic() - self._begin) if self._images else None


class _progress:
    """The bar: step, loss, accuracy, images per second, time left."""

    def __init__(self, console: Console, last: int, step: int):
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("steps", total=last, completed=step, note="compiling")
        self._shown = 0.0

    def __enter__(self) -> "_progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def due(self) -> bool:
        return time.monotonic() - self._shown > 0.5

    def show(self, step: int, metrics: dict[str, float], speed: float | None) -> None:
        note = f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}"
        note += f"  {speed:,.0f} images/s" if speed else ""
        self._bar.update(self._task, completed=step, note=note)
        self._shown = time.monotonic()


def _row(epoch, step, train, test, speed, seconds) -> Row:
    return {
        "epoch": epoch,
        "step": step,
        **{f"train_{name}": value for name, value in train.items()},
        **{f"test_{name}": value for name, value in test.items()},
        "images_per_second": speed,
        "seconds": seconds,
    }


def _line(row: Row, epochs: int) -> str:
    speed = f"  {row['images_per_second']:,.0f} images/s" if row["images_per_second"] else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.2%}  "
        f"test loss {row['test_loss']:.3f} accuracy {row['test_accuracy']:.2%}{speed}"
    )


def _parse(line: str) -> Row | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # a line that a kill cut short
        return None
