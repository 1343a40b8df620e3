"""Trains one run: claims its work directory, resumes from its newest checkpoint, writes its result."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.common import description, distillation, dry_run, entry, fine_tuning, outcome, runs
from experiments.common.config import TrainConfig
from experiments.common.recipes import Recipe
from experiments.common.setup import Setup
from experiments.common.workdir import finished, write_or_compare
from lowcost.deploy.loading import identity, result_of
from lowcost.terminal import first_line, note, printable, report_error
from lowcost.train import checkpoint, lock, loop, processes
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import place, replicated
from lowcost.train.metrics_log import Metrics, MetricsLog, repaired_rows
from lowcost.train.state import TrainState


def run(config: TrainConfig, recipe: Recipe | None = None) -> int:
    """Trains as configured, from the newest checkpoint if there is one, and prints the result.

    Args:
        config: the run's configuration.
        recipe: replaces the recipe that the configuration names.

    Returns:
        The exit status, see `entry.STATUSES`.
    """
    try:
        ready = _prepare(config, recipe)
        if config.dry_run:
            return dry_run.report(ready)
        with contextlib.ExitStack() as stack:
            claim = processes.from_process_0(lambda: _claim(ready, stack))
            return _train(ready, claim, stack.enter_context(Interruption()))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        report_error(error)
        return entry.DIVERGED if isinstance(error, FloatingPointError) else entry.FIXABLE


def run_all(
    wanted: Iterable[tuple[TrainConfig, Recipe]], report: Callable[..., None], train: Callable[..., int] | None = None
) -> int:
    """Trains the runs that are not finished, one after another; one that diverges does not stop the others.

    Args:
        wanted: the runs, each with the number of epochs and its recipe.
        report: called with the configuration of each finished run.
        train: trains a run, given as its configuration and recipe, and returns its exit status. None: `run`.

    Returns:
        `entry.DIVERGED` if a network diverged; any other exit status of training ends the program at once.
    """
    status = 0
    for config, recipe in wanted:
        ingredients = dataclasses.asdict(runs.changed(recipe, config))
        code = (train or run)(config, recipe) if finished(config, ingredients) is None else 0
        if not code:
            report(config)
        elif code == entry.DIVERGED:
            status = code
        else:
            return code
    return status


def _prepare(config: TrainConfig, recipe: Recipe | None) -> Setup:
    """Returns the set-up once all processes have one, and the same; refuses in all of them otherwise."""
    ready, failure = None, ""
    try:
        ready = runs.prepare(config, recipe)
    except (ValueError, OSError, ImportError) as error:
        failure = str(error)
    try:
        if not (processes.unequal_devices() or processes.process_max(bool(failure))):
            assert ready is not None
            if not (names := description.differing_fields(ready)):
                if not ready.config.dry_run:
                    ready.methods.update(processes.from_process_0(lambda: runs.methods_of(ready)))
                return _with_source(ready)
            failure = f"all processes must have the same {', '.join(names)}, got several; start them alike"
            if "kernel_size" in names:
                failure += ", with --kernel-size stated"
    except OSError as error:  # no devices, or another process has ended
        failure = failure or str(error)
    raise ValueError(failure or "another process could not start; see what it printed")


def _with_source(ready: Setup) -> Setup:
    """Returns the set-up with the weights of --init-from and of --teacher, which process 0 reads for all."""
    config, dataset = ready.config, ready.dataset
    if config.init_from is not None:
        digest, loaded = processes.from_process_0(lambda: fine_tuning.source(config, ready.net, dataset))
        ready = ready._replace(extra={**ready.extra, "init_from": digest}, loaded=loaded)
    if config.teacher:
        digest, teachers = distillation.teachers(config, dataset)
        teachers = jax.tree.map(lambda x: place(x, replicated(ready.mesh)), teachers)
        train_steps = partial(ready.train_steps, teachers=teachers)
        ready = ready._replace(extra={**ready.extra, "teacher": digest}, train_steps=train_steps)
    return ready


def _claim(ready: Setup, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Locks the work directory until the stack is closed, writes or compares config.json, returns the identity."""
    config, workdir = ready.config, ready.config.directory()
    stack.enter_context(lock.locked(workdir))
    about = description.describe(ready.dataset) | ready.extra
    write_or_compare(config, dataclasses.asdict(ready.recipe), about, description.settings(), ready.methods)
    if (workdir / "result.json").exists() and not checkpoint.saved_steps(workdir / "checkpoints"):
        problem = f"{workdir} must hold the checkpoints of its finished run, got result.json without any"
        raise ValueError(f"{problem}; put them back, or start over in another --workdir")
    return identity(workdir)


def _train(ready: Setup, claim: dict[str, Any], interruption: Interruption) -> int:
    """Restores, trains to the end or to a stop request, and reports; returns the exit status."""
    workdir = ready.config.directory()
    console = Console(soft_wrap=True, markup=False, quiet=not processes.is_process_0())  # a path may look like markup
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", run=claim, keep=ready.config.keep)
    try:
        restored = checkpoints.restore_newest(ready.abstract_state())
        begin, state, meta = restored[:3] if restored else (0, ready.start(), {"seconds": 0.0})
        if restored:
            console.print(f"resuming from step {begin} in {printable(workdir)}")
        elif ready.loaded is not None:
            console.print(fine_tuning.summary(ready.config, ready.loaded), highlight=False)
        log = _open_log(ready, begin)
        outputs = {"log": log, "checkpoints": checkpoints, "console": console, "seconds": meta["seconds"]}
        state = _fit(ready, state, interruption, outputs)
        ended = _ended(ready, state, log, interruption)
        done = begin == loop.steps_done(state) and processes.from_process_0(lambda: _reported(workdir, restored))
        measured = outcome.measured(ready, state, log) if ended and not done else None
    except (jax.errors.JaxRuntimeError, ConnectionError) as error:
        if jax.process_count() == 1:
            raise
        report_error(entry.lack_of_memory(error) or f"another process of the run is gone ({first_line(error)})")
        note("start all of them again to resume from the last checkpoint")
        os._exit(entry.PROCESS_GONE)  # an orderly exit would wait for the process that is gone
    finally:
        checkpoints.close()
    if not ended:
        return _stopped(ready, state, log, interruption, console)
    if processes.is_process_0():
        outcome.report(ready, state, log, measured, console)
    return 0


def _reported(workdir: Path, restored: checkpoint.Restored | None) -> bool:
    """Returns whether result.json is of the restored state; after a kill it may be that of an older one."""
    result = result_of(workdir)
    return restored is not None and result is not None and result.get("digest") == restored.digest


def _ended(ready: Setup, state: TrainState, log: MetricsLog, interruption: Interruption) -> bool:
    """Returns whether training came to its end, and was not stopped before."""
    early = loop.ended_early(state, log.last_epoch(), ready.config.patience)
    return interruption.signal is None or log.last_epoch() >= ready.epochs or early


def _open_log(ready: Setup, step: int) -> MetricsLog:
    """Opens metrics.jsonl, and TensorBoard's files if asked for, with the epochs up to a step; process 0 writes."""
    path = ready.config.directory() / "metrics.jsonl"
    rows = processes.from_process_0(lambda: repaired_rows(path, step // ready.steps_per_epoch))
    if not processes.is_process_0():
        return MetricsLog(rows, None, None)
    return MetricsLog(rows, path, path.with_name("tensorboard") if ready.config.tensorboard else None)


def _fit(ready: Setup, state: TrainState, interruption: Interruption, options: dict[str, Any]) -> TrainState:
    """Trains to the end or to a stop request; a ValueError here is a fault of the program and keeps its traceback."""

    def due(state: TrainState) -> bool:
        epoch = loop.steps_done(state) // ready.steps_per_epoch
        return epoch % ready.config.evaluate_every == 0 or epoch == ready.epochs

    def evaluate(state: TrainState) -> Metrics | None:
        if due(state):
            return ready.evaluate(state.variables, interruption=interruption)
        return None if interruption.stop_requested() else {}

    def validate(state: TrainState) -> tuple[Metrics, TrainState]:
        validates = ready.dataset.validation is not None and (ready.config.keeps_best or due(state))
        return ready.validate(state) if validates else ({}, state)

    batches, steps_max = ready.batches()
    options |= {"steps_per_epoch": ready.steps_per_epoch, "epochs": ready.epochs, "steps_max": steps_max}
    options |= {"interruption": interruption, "patience": ready.config.patience}
    try:
        return loop.fit(state, ready.train_steps, batches, evaluate, validate, **options)
    except ValueError as error:
        raise RuntimeError("training failed; this is a mistake in the program") from error


def _stopped(ready: Setup, state: TrainState, log: MetricsLog, interruption: Interruption, console: Console) -> int:
    """Draws the curves, says where the run stopped, and returns the exit status."""
    outcome.draw(ready, state, log)
    saved = "" if loop.skipped_in_a_row(state) else f", saved in {printable(ready.config.directory())}"
    where = f"stopped at step {loop.steps_done(state)}{saved}"
    console.print(f"{where}; the same command resumes from the last checkpoint")
    assert interruption.signal is not None
    return 128 + interruption.signal
