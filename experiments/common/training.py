"""Trains one run: claims its work directory, resumes from its newest checkpoint, writes its result."""

import contextlib
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import distillation, dry_run, entry, files, fine_tuning, memory, plots, results, runs
from experiments.common.config import TrainConfig, values
from experiments.common.recipes import Recipe
from experiments.common.workdir import Result, finished, write_or_compare
from lowcost.deploy.loading import identity
from lowcost.terminal import first_line, printable, warn
from lowcost.train import checkpoint, feed, lock, loop, processes
from lowcost.train.calibration import fit_temperature
from lowcost.train.interruption import Interruption
from lowcost.train.mesh import place, replicated
from lowcost.train.metrics_log import Metrics, MetricsLog, read_rows
from lowcost.train.state import TrainState, count_weights

TEMPERATURE_IMAGES = 5000
"""Largest number of validation images, or training images where there are none, to which a temperature is fitted."""
OVERLAPS = {"mean_iou": "mean IoU", "mean_dice": "mean Dice"}
"""Figures of networks that label every point → their names in tables."""


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
        warn(f"error: {error}")
        return entry.DIVERGED if isinstance(error, FloatingPointError) else entry.FIXABLE


def run_all(
    wanted: Iterable[tuple[TrainConfig, Recipe]], train: Callable[..., int], report: Callable[..., None]
) -> int:
    """Trains the runs that are not finished, one after another; one that diverges does not stop the others.

    Args:
        wanted: the runs, each with the number of epochs and its recipe.
        train: trains a run, given as its configuration and recipe, and returns its exit status.
        report: called with the configuration of each finished run.

    Returns:
        `entry.DIVERGED` if a network diverged; any other exit status of training ends the program at once.
    """
    status = 0
    for config, recipe in wanted:
        code = train(config, recipe) if finished(config, dataclasses.asdict(recipe)) is None else 0
        if not code:
            report(config)
        elif code == entry.DIVERGED:
            status = code
        else:
            return code
    return status


def _prepare(config: TrainConfig, recipe: Recipe | None) -> runs.Setup:
    """Returns the set-up once all processes have one, and the same; refuses in all of them otherwise."""
    ready, failure = None, ""
    try:
        ready = runs.prepare(config, recipe)
    except (ValueError, OSError, ImportError) as error:
        failure = str(error)
    try:
        if not (processes.unequal_devices() or processes.process_max(bool(failure))):
            assert ready is not None
            if not (names := runs.differing_fields(ready)):
                if not ready.config.dry_run:
                    ready.methods.update(processes.from_process_0(lambda: runs.methods_of(ready)))
                return _with_source(ready)
            failure = f"all processes must have the same {', '.join(names)}, got several; start them alike"
    except OSError as error:  # no devices, or another process has ended
        failure = failure or str(error)
    raise ValueError(failure or "another process could not start; see what it printed")


def _with_source(ready: runs.Setup) -> runs.Setup:
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


def _claim(ready: runs.Setup, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Locks the work directory until the stack is closed, writes or compares config.json, returns the identity."""
    config, workdir = ready.config, ready.config.directory()
    stack.enter_context(lock.locked(workdir))
    about = runs.describe(ready.dataset) | ready.extra
    write_or_compare(config, dataclasses.asdict(ready.recipe), about, runs.settings(), ready.methods)
    if (workdir / "result.json").exists() and not any((workdir / "checkpoints").glob("[0-9]*")):
        problem = f"{workdir} must hold the checkpoints of its finished run, got result.json without any"
        raise ValueError(f"{problem}; put them back, or start over in another --workdir")
    return identity(workdir)


def _train(ready: runs.Setup, claim: dict[str, Any], interruption: Interruption) -> int:
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
        done = begin == loop.first_step(state) and processes.from_process_0((workdir / "result.json").exists)
        measured = _measured(ready, state, log) if ended and not done else None
    except (jax.errors.JaxRuntimeError, ConnectionError) as error:
        if jax.process_count() == 1:
            raise
        warn(f"error: another process of the run is gone ({first_line(error)})")
        warn("start all of them again to resume from the last checkpoint")
        os._exit(entry.PROCESS_GONE)  # an orderly exit would wait for the process that is gone
    finally:
        checkpoints.close()
    if not ended:
        return _stopped(ready, state, log, interruption, console)
    if processes.is_process_0():
        _report(ready, state, log, measured, console)
    return 0


def _ended(ready: runs.Setup, state: TrainState, log: MetricsLog, interruption: Interruption) -> bool:
    """Returns whether training came to its end, and was not stopped before."""
    early = loop.ended_early(state, log.last_epoch(), ready.config.patience)
    return interruption.signal is None or log.last_epoch() >= ready.epochs or early


def _open_log(ready: runs.Setup, step: int) -> MetricsLog:
    """Opens metrics.jsonl, and TensorBoard's files if asked for, with the epochs up to a step; process 0 writes."""
    path = ready.config.directory() / "metrics.jsonl"
    rows = processes.from_process_0(lambda: read_rows(path, step // ready.steps_per_epoch))
    if not processes.is_process_0():
        return MetricsLog(rows, None, None)
    return MetricsLog(rows, path, path.with_name("tensorboard") if ready.config.tensorboard else None)


def _fit(ready: runs.Setup, state: TrainState, interruption: Interruption, options: dict[str, Any]) -> TrainState:
    """Trains to the end or to a stop request; a ValueError here is a fault of the program and keeps its traceback."""

    def due(state: TrainState) -> bool:
        epoch = loop.first_step(state) // ready.steps_per_epoch
        return epoch % ready.config.evaluate_every == 0 or epoch == ready.epochs

    def evaluate(state: TrainState) -> Metrics | None:
        if due(state):
            return ready.evaluate(state.variables, interruption=interruption)
        return None if interruption.stop_requested() else {}

    def validate(state: TrainState) -> tuple[Metrics, TrainState]:
        validates = ready.dataset.validation is not None and (ready.config.keeps_best or due(state))
        return ready.validate(state) if validates else ({}, state)

    train, steps_max = ready.dataset.train, loop.dispatch_max(ready.mesh)
    resident = feed.fits(train.images, ready.mesh)
    batches = feed.feed(train.images, train.labels, ready.indices, ready.mesh, steps_max=steps_max, resident=resident)
    options |= {"steps_per_epoch": ready.steps_per_epoch, "epochs": ready.epochs, "steps_max": steps_max}
    options |= {"interruption": interruption, "patience": ready.config.patience}
    try:
        return loop.fit(state, ready.train_steps, batches, evaluate, validate, **options)
    except ValueError as error:
        raise RuntimeError("training failed; this is a mistake in the program") from error


def _draw(ready: runs.Setup, state: TrainState, log: MetricsLog) -> None:
    if processes.is_process_0() and log.rows:
        title = f"{ready.config.architecture} {ready.config.width_name} on {ready.dataset.name}"
        chosen = [int(state.best["epoch"])] if state.best and ready.config.seeds == 1 else []
        plots.draw_curves(log.rows, ready.config.directory() / "curves.png", title=title, chosen=chosen)


def _stopped(
    ready: runs.Setup, state: TrainState, log: MetricsLog, interruption: Interruption, console: Console
) -> int:
    """Draws the curves, says where the run stopped, and returns the exit status."""
    _draw(ready, state, log)
    saved = "" if loop.skipped_in_a_row(state) else f", saved in {printable(ready.config.directory())}"
    where = f"stopped at step {loop.first_step(state)}{saved}"
    console.print(f"{where}; the same command resumes from the last checkpoint")
    assert interruption.signal is not None
    return 128 + interruption.signal


def _report(
    ready: runs.Setup, state: TrainState, log: MetricsLog, measured: dict[str, Any] | None, console: Console
) -> None:
    """Draws the curves, and writes and prints the result, unless it was there before."""
    workdir, last = ready.config.directory(), log.last_epoch()
    path = workdir / "result.json"
    if measured is None:  # a new result would hold other figures of time and memory
        console.print("this run is finished; nothing was left to do")
        result: dict[str, Any] = Result(path)
    else:
        if last < ready.epochs:
            console.print(
                f"ended after epoch {last} of {ready.epochs}: no better one for {ready.config.patience} epochs"
            )
        result = _result(ready, state, log, measured)
        files.write_whole(path, (json.dumps(_finite(result), indent=2, allow_nan=False) + "\n").encode())
    _draw(ready, state, log)
    print_result(console, result, workdir)


def _finite(content: Any) -> Any:
    """Returns JSON with None in place of NaN and infinities, which JSON lacks."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def _measured(ready: runs.Setup, state: TrainState, log: MetricsLog) -> dict[str, Any]:
    """Returns the figures of the network that is deployed; all processes must call it."""
    config, dataset, row = ready.config, ready.dataset, log.rows[-1]
    if config.keeps_best:
        chosen = ready.evaluate(state.chosen)
        assert chosen is not None
        tests = {name: np.atleast_1d(figures).tolist() for name, figures in chosen.items()}
        epochs = np.atleast_1d(state.best["epoch"]).tolist()
        scores = {"mean_iou": "mean IoU", "accuracy": "accuracy", "loss": "loss"}
        by = f"validation {next(words for name, words in scores.items() if name in tests)}"
    else:
        names = [name for name in ("loss", "accuracy", *OVERLAPS) if f"test_{name}" in row]
        tests = {name: row.get(f"test_{name}_seeds", [row[f"test_{name}"]]) for name in names}
        epochs, by = [log.last_epoch()] * config.seeds, "last epoch"
    result: dict[str, Any] = {"chosen": {"epochs": epochs, "by": by}, "tests": tests}
    if dataset.task == "classes":
        part = dataset.validation or dataset.train
        some = slice(None, None, math.ceil(len(part) / TEMPERATURE_IMAGES))
        least = 0.0 if dataset.validation else 1.0  # of images that it has learned, a network is rightly surer
        logits = ready.outputs(state.chosen, part.images[some])
        fitted = (fit_temperature(x, part.labels[some]) if np.isfinite(x).all() else 1.0 for x in logits)
        result["temperatures"] = [round(max(least, temperature), 4) for temperature in fitted]
    return result


def _result(ready: runs.Setup, state: TrainState, log: MetricsLog, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of result.json."""
    config, row = ready.config, log.rows[-1]
    speeds, shares = ([r[x] for r in log.rows if r.get(x)] for x in ("images_per_second", "share_in_steps"))
    tests = measured.pop("tests")
    accuracies = tests.get("accuracy")
    overlaps = {name: tests[name] for name in OVERLAPS if name in tests}
    return {
        **values(config, "dataset", "task", "architecture"),
        "width": config.width_name,
        "recipe": config.recipe,
        "weights": count_weights(state.params) // config.seeds,
        "epochs": row["epoch"],
        **values(config, "seed", "seeds"),
        "test_accuracy": accuracies and statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if accuracies and len(accuracies) > 1 else None,
        "test_accuracies": accuracies,
        "test_losses": tests["loss"],
        **{f"test_{name}": statistics.mean(found) for name, found in overlaps.items()},
        **{f"test_{name}s": found for name, found in overlaps.items()},
        **measured,
        **values(config, "init_from", "teacher"),
        "test_images": len(ready.dataset.test),
        "validation_images": len(ready.dataset.validation or ()),
        "train_images": len(ready.dataset.train),
        "steps": loop.first_step(state),
        "skipped_steps": row["skipped"],
        "train_seconds": round(row["seconds"], 1),
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "share_in_steps": round(statistics.median(shares), 4) if shares else None,
        "peak_memory_gib": round(memory.peak_memory() / 2**30, 2),
        "processes": jax.process_count(),
        **results.provenance(),
        "digest": checkpoint.digest(state),
    }


def print_result(console: Console, result: dict[str, Any], workdir: Path) -> None:
    """Prints the figures of a result.json as a table, and where the run lies."""
    table = Table(show_header=False, title=f"{result['architecture']} {result['width']} on {result['dataset']}")
    spread = "" if result["test_accuracy_std"] is None else f" ± {result['test_accuracy_std']:.2%}"
    seeds = f", {result['seeds']} seeds" if result["seeds"] > 1 else ""
    table.add_row("weights", f"{result['weights']:,}")
    images = f"of {result['test_images']:,} images{seeds}"
    if result["test_accuracy"] is None:
        losses = [math.nan if loss is None else loss for loss in result["test_losses"]]
        table.add_row("test loss", f"{statistics.mean(losses):.4f} {images}")
    else:
        table.add_row("test accuracy", f"{result['test_accuracy']:.2%}{spread} {images}")
    for name, words in OVERLAPS.items():
        if (share := result.get(f"test_{name}")) is not None:
            found = result[f"test_{name}s"]
            table.add_row(f"test {words}", f"{share:.2%}" + (f" ± {statistics.stdev(found):.2%}" if found[1:] else ""))
    table.add_row("epochs", str(result["epochs"]))
    if "chosen" in result and result["chosen"]["by"] != "last epoch":
        table.add_row("best epoch", f"{', '.join(map(str, result['chosen']['epochs']))} by {result['chosen']['by']}")
    if result["skipped_steps"]:
        table.add_row("skipped steps", f"{result['skipped_steps']:,}: loss or gradient not finite")
    table.add_row("time", f"{result['train_seconds']:,.0f} s")
    if result["images_per_second"]:
        table.add_row("images per second", f"{result['images_per_second']:,.0f}")
        table.add_row("time in training steps", f"{result['share_in_steps']:.1%}")
    table.add_row("peak memory", f"{result['peak_memory_gib']:.2f} GiB")
    console.print(table)
    console.print(f"work directory: {printable(workdir)}", highlight=False)  # a cell of the table would be cut
