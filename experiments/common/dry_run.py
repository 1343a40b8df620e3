"""Estimates the memory and time of a run, `train --dry-run`: trains a few steps and writes no work directory."""

import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import peak_memory
from experiments.common.setup import Setup
from lowcost.train import processes
from lowcost.train.state import count_weights

SECONDS = 3.0
"""About how long the steps are measured."""


def report(ready: Setup) -> int:
    """Prints images, weights, memory, seconds per epoch and the time of the whole run; returns 0."""
    first, step, evaluation = _times(ready)
    config, dataset = ready.config, ready.dataset
    epoch = ready.steps_per_epoch * step + evaluation
    table = Table(show_header=False, title=f"{config.architecture} {config.width_name} on {dataset.name}")
    shape = " x ".join(map(str, dataset.image_shape))
    for name, part in (("training", dataset.train), ("validation", dataset.validation), ("test", dataset.test)):
        if part is not None:
            table.add_row(f"{name} images", f"{len(part):,} of {shape}")
    params = jax.eval_shape(ready.initial_state).params
    table.add_row("weights", f"{count_weights(params) // config.seeds:,}")
    table.add_row("stencils", f"{config.kernel_size} points per axis")
    table.add_row("steps per epoch", f"{ready.steps_per_epoch:,} of {config.batch_size} images")
    table.add_row("first step", f"{first:,.1f} s, with compilation")
    table.add_row("an epoch", f"{epoch:,.1f} s, of which {evaluation:,.1f} s are evaluation")
    table.add_row(f"all {ready.epochs:,} epochs", f"{ready.epochs * epoch / 60:,.1f} min")
    table.add_row("peak memory", f"{peak_memory.of_this_process() / 2**30:.2f} GiB")
    if processes.is_process_0():
        Console(markup=False).print(table)
    return 0


def _times(ready: Setup) -> tuple[float, float, float]:
    """Returns the seconds of the first step, of another one, and of the evaluations of an epoch."""
    batches, steps_max = ready.batches()
    state, seconds, done = ready.start(), [], 0
    for n in (1, 1, steps_max):
        begin = time.monotonic()
        state = ready.train_steps(state, np.int32(n), *batches(done, n, n))
        jax.block_until_ready(state)
        seconds.append((time.monotonic() - begin) / n)
        done += n
        if processes.process_max(seconds[-1] * steps_max > SECONDS and len(seconds) > 1):
            break
    some = slice(2 * ready.config.batch_size)
    test = ready.dataset.test
    for _ in range(2):  # the first one compiles
        begin = time.monotonic()
        ready.evaluate(state.variables, test.images[some], test.labels[some])
    per_image = (time.monotonic() - begin) / len(test.labels[some])
    validation, every = len(ready.dataset.validation or ()), ready.config.evaluate_every
    images = validation / (1 if ready.config.keeps_best else every) + len(test) / every
    return seconds[0], seconds[-1], per_image * images
