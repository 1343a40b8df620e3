"""Trains a network of the paper and leaves its accuracy, curves and checkpoints in a work directory.

The same command again resumes from the last checkpoint.
"""

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common import entry
from experiments.common.config import DIVERGED, Result, TrainConfig, identity, write_or_compare
from experiments.common.files import write_whole
from lowcost.terminal import printable, warn

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.common.recipes import Recipe
    from experiments.common.runs import Setup
    from lowcost.train.interruption import Interruption
    from lowcost.train.metrics_log import MetricsLog
    from lowcost.train.state import TrainState


def main(config: TrainConfig) -> int:
    """Joins the other processes, trains, prints the result; heavy imports wait for the flags."""
    from experiments.common.cluster import connect

    try:
        given = config.coordinator, config.num_processes, config.process_id
        number = connect(*given, heartbeat_seconds=config.heartbeat_seconds, wait_seconds=config.wait_seconds)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    try:
        code = run(dataclasses.replace(config, num_processes=number))
    except ValueError as error:  # `run` has refused what the user can fix
        raise RuntimeError("training failed; this is a mistake in the program") from error
    if code == 2:
        import jax

        if jax.distributed.is_initialized():
            sys.stdout.flush()
            if not config.process_id:
                time.sleep(2)  # the others are aborted when this one is gone: time for their own line
            os._exit(code)  # an orderly exit would wait for the others, who may wait for this one
    return code


def run(config: TrainConfig, recipe: "Recipe | None" = None) -> int:
    """Train as configured, from the last checkpoint if there is one.

    Args:
        config: the run's.
        recipe: in place of the one that the configuration names.

    Returns:
        The exit status: 0 done, 2 the configuration, data or disk are at fault, 3 the loss is no longer finite,
        4 another process of the run is gone, 128 + signal when interrupted.
    """
    ready = _prepare(config, recipe)
    if ready is None:
        return 2
    from lowcost.train.interruption import Interruption
    from lowcost.train.lock import locked
    from lowcost.train.processes import from_process_0

    try:
        with contextlib.ExitStack() as held:
            from_process_0(lambda: held.enter_context(locked(config.directory())) and None)
            with _refusing():
                claim = from_process_0(lambda: _claim(ready))
            interruption = held.enter_context(Interruption())
            return _train(ready, claim, interruption)
    except (_RefusedError, OSError) as error:  # no room, no permission: what is saved is whole
        warn(f"error: {error}")
        return 2
    except FloatingPointError as error:
        warn(f"error: {error}")
        return DIVERGED


class _RefusedError(Exception):
    """What the user can mend, in one line."""


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What is known to raise ValueError or ImportError for the user, and not by mistake."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise _RefusedError(*error.args) from error


def _prepare(config: TrainConfig, recipe: "Recipe | None") -> "Setup | None":
    from experiments.common import runs
    from lowcost.train.processes import agree, unequal_devices

    ready, failure = None, ""
    try:
        ready = runs.prepare(config, recipe)
    except (ValueError, OSError) as error:
        failure = str(error)
    try:
        if not (unequal_devices() or agree(bool(failure))):
            assert ready is not None
            if not (names := runs.differing_fields(ready)):
                return ready
            failure = (
                f"all processes must have the same {', '.join(names)}, got several; start them by the same command"
            )
    except OSError as error:  # no devices, or another process has ended
        failure = failure or str(error)
    warn(f"error: {failure or 'another process could not start; see what it printed'}")
    return None


def _claim(ready: "Setup") -> dict[str, Any]:
    """Writes config.json, or compares the one that is there: the run's identity."""
    from experiments.common import runs

    config, workdir = ready.config, ready.config.directory()
    write_or_compare(config, dataclasses.asdict(ready.recipe), runs.describe(ready.dataset), runs.settings())
    if (workdir / "result.json").exists() and not any((workdir / "checkpoints").glob("[0-9]*")):
        raise ValueError(
            f"{workdir} must hold the checkpoints of its finished run, got result.json without any; "
            "put them back, or start over in another --workdir"
        )
    return identity(workdir)


def _train(ready: "Setup", run: dict[str, Any], interruption: "Interruption") -> int:
    import jax
    from rich.console import Console

    from experiments.common.curves import draw
    from lowcost.train.checkpoint import Checkpoints
    from lowcost.train.feed import feed, fits
    from lowcost.train.loop import evaluate_all, first_step, fit, most_steps, skipped_in_a_row
    from lowcost.train.metrics_log import Metrics, MetricsLog, read_rows
    from lowcost.train.processes import from_process_0, is_process_0

    config, dataset, workdir, first = ready.config, ready.dataset, ready.config.directory(), is_process_0()
    epochs = config.epochs or 0
    console = Console(soft_wrap=True, markup=False, quiet=not first)  # a path may look like markup

    def evaluate(state: "TrainState") -> Metrics | None:
        epoch = first_step(state) // ready.steps_per_epoch
        if epoch % config.evaluate_every and epoch < epochs:
            return {}
        return evaluate_all(
            ready.eval_step,
            state,
            dataset.test.images,
            dataset.test.labels,
            batch_size=config.batch_size,
            mesh=ready.mesh,
            interruption=interruption,
        )

    with _refusing():
        checkpoints = Checkpoints(workdir / "checkpoints", run=run, keep=config.keep)
    try:
        with _refusing():
            restored = checkpoints.restore_newest(ready.abstract_state())
        begin, state, meta = restored[:3] if restored else (0, ready.initial_state(), {"seconds": 0.0})
        if restored:
            console.print(f"resuming from step {begin} in {printable(workdir)}")
        rows = from_process_0(lambda: read_rows(workdir / "metrics.jsonl", begin // ready.steps_per_epoch))
        with _refusing():
            log = MetricsLog(
                rows,
                workdir / "metrics.jsonl" if first else None,
                workdir / "tensorboard" if first and config.tensorboard else None,
            )
        most = most_steps()
        images, labels = dataset.train.images, dataset.train.labels
        state = fit(
            state,
            ready.train_steps,
            feed(images, labels, ready.indices, ready.mesh, most=most, resident=fits(images, ready.mesh)),
            evaluate,
            steps_per_epoch=ready.steps_per_epoch,
            epochs=epochs,
            most=most,
            log=log,
            checkpoints=checkpoints,
            interruption=interruption,
            console=console,
            seconds=meta["seconds"],
        )
    except (jax.errors.JaxRuntimeError, ConnectionError) as error:
        if jax.process_count() == 1:
            raise
        warn(f"error: another process of the run is gone ({str(error).splitlines()[0][:200]})")
        warn("start all of them again to resume from the last checkpoint")
        os._exit(4)  # an orderly exit would wait for the one that is gone
    finally:
        checkpoints.close()
    if first and log.rows:
        draw(log.rows, workdir / "curves.png", title=f"{config.architecture} {config.width} on {dataset.name}")
    if interruption.signal is not None and log.last_epoch() < epochs:
        where = "the last checkpoint" if skipped_in_a_row(state) else "there"
        saved = "" if skipped_in_a_row(state) else f", saved in {printable(workdir)}"
        console.print(f"stopped at step {first_step(state)}{saved}; the same command resumes from {where}")
        return 128 + interruption.signal
    if not first:
        return 0

    path = workdir / "result.json"
    if begin == epochs * ready.steps_per_epoch and path.exists():  # leave the run's figures
        console.print("this run is finished; nothing was left to do")
        with _refusing():
            _print(console, Result(path), workdir)
        return 0
    result = _result(ready, state, log)
    write_whole(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    _print(console, result, workdir)
    return 0


def _result(ready: "Setup", state: "TrainState", log: "MetricsLog") -> dict[str, Any]:
    import jax

    from lowcost.train.checkpoint import digest
    from lowcost.train.state import count_weights

    config, row = ready.config, log.rows[-1]

    def median(name: str, digits: int) -> float | None:
        values = [row[name] for row in log.rows if row.get(name)]
        return round(statistics.median(values), digits) if values else None

    accuracies = row.get("test_accuracy_seeds", [])
    return {
        "dataset": ready.dataset.name,
        "architecture": config.architecture,
        "width": config.width,
        "recipe": config.recipe,
        "weights": count_weights(state.params) // config.seeds,
        "epochs": config.epochs,
        "seed": config.seed,
        "seeds": config.seeds,
        "test_accuracy": row["test_accuracy"],
        "test_accuracy_std": statistics.stdev(accuracies) if accuracies else None,
        "test_accuracies": accuracies or [row["test_accuracy"]],
        "test_images": len(ready.dataset.test),
        "train_images": len(ready.dataset.train),
        "skipped_steps": row["skipped"],
        "train_seconds": round(row["seconds"], 1),
        "images_per_second": median("images_per_second", 1),
        "share_in_steps": median("share_in_steps", 4),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "processes": jax.process_count(),
        **provenance(),
        "digest": digest(state),
    }


def provenance() -> dict[str, Any]:
    """Where figures come from: the devices, JAX's version, the commit."""
    import jax

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"device": device, "jax_version": jax.__version__, "commit": commit()}


def commit() -> str | None:
    """Of the code that runs, "-dirty" where files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        there = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return there.stdout.strip()


def peak_memory() -> int:
    """The most bytes this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process was before it became this program
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _print(console: "Console", result: dict[str, Any], workdir: Path) -> None:
    from rich.table import Table

    table = Table(show_header=False, title=f"{result['architecture']} {result['width']} on {result['dataset']}")
    spread = "" if result["test_accuracy_std"] is None else f" ± {result['test_accuracy_std']:.2%}"
    many = f", {result['seeds']} seeds" if result["seeds"] > 1 else ""
    table.add_row("weights", f"{result['weights']:,}")
    table.add_row("test accuracy", f"{result['test_accuracy']:.2%}{spread} of {result['test_images']:,} images{many}")
    table.add_row("epochs", str(result["epochs"]))
    if result["skipped_steps"]:
        table.add_row("skipped steps", f"{result['skipped_steps']:,}: loss or gradient not finite")
    table.add_row("time", f"{result['train_seconds']:,.0f} s")
    if result["images_per_second"]:
        share = f", {result['share_in_steps']:.1%} of the time in steps"
        table.add_row("images per second", f"{result['images_per_second']:,.0f}{share}")
    table.add_row("peak memory", f"{result['peak_memory_gib']:.2f} GiB")
    console.print(table)
    console.print(f"everything in {printable(workdir)}", highlight=False)  # a cell of the table would be cut


if __name__ == "__main__":
    entry.run(main, TrainConfig, long=True)
