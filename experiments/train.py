"""Train a network of the paper: `python -m experiments.train --help`."""

import json
import resource
import signal
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from experiments.config import TrainConfig, write_or_compare

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.setup import Setup
    from lowcost.train.interruption import Interruption


def main() -> None:
    """Parse the flags, train, print the result; heavy imports wait until the flags are right."""
    config = tyro.cli(TrainConfig, description=TrainConfig.__doc__)
    sys.exit(run(config))


def run(config: TrainConfig) -> int:
    """Train as configured, from the last checkpoint if there is one.

    Returns:
        The exit status: 0 done, 2 the configuration, data or disk are at fault, 3 the loss is no longer finite,
        128 + signal when interrupted.
    """
    try:
        from experiments import setup
        from lowcost.train.interruption import Interruption

        ready = setup.prepare(config)
        write_or_compare(config, setup.describe(ready.dataset))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first step; the same command starts again", file=sys.stderr)
        return 128 + signal.SIGINT
    try:
        with Interruption() as interruption:
            return _train(config, ready, interruption)
    except OSError as error:  # no room, no permission: what is saved is whole
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(config: TrainConfig, ready: "Setup", interruption: "Interruption") -> int:
    import jax
    from rich.console import Console

    from experiments import recipes, setup
    from experiments.curves import draw
    from lowcost import data
    from lowcost.train.feed import feed, fits
    from lowcost.train.loop import evaluate_all, fit
    from lowcost.train.metrics_log import MetricsLog
    from lowcost.train.state import TrainState, count_weights
    from lowcost.train.step import make_eval_step, make_train_step

    epochs, workdir, dataset = config.length(), config.directory(), ready.dataset
    console = Console(soft_wrap=True, markup=False)  # a path may look like markup
    augment = recipes.augmentation(dataset.flip)
    train_step = make_train_step(ready.net, ready.optimizer, augment, config.seed, ready.steps_per_epoch)
    eval_step = jax.jit(make_eval_step(ready.net))

    images, labels = dataset.train.images, dataset.train.labels
    batch = feed(
        images,
        labels,
        lambda step: data.batch_indices(config.seed, step, len(labels), config.batch_size),
        ready.mesh,
        resident=fits(images, ready.mesh),
    )

    def evaluate(state: TrainState) -> dict[str, float] | None:
        images, labels = dataset.test.images, dataset.test.labels
        size = config.batch_size
        return evaluate_all(
            eval_step, state, images, labels, batch_size=size, mesh=ready.mesh, interruption=interruption
        )

    checkpoints = setup.checkpoints(workdir, config.keep)
    try:
        restored = checkpoints.restore_newest(ready.abstract_state)
    except ValueError as error:
        checkpoints.close()
        print(f"error: {error}", file=sys.stderr)
        return 2
    if restored is None:
        begin, state, seconds = 0, ready.initial_state(config.seed), 0.0
    else:
        begin, state, meta = restored
        seconds = meta["seconds"]
        console.print(f"going on from step {begin} in {workdir}")
    log = MetricsLog(workdir / "metrics.jsonl", begin // ready.steps_per_epoch)
    try:
        state = fit(
            state,
            jax.jit(train_step, donate_argnums=0),
            batch,
            evaluate,
            steps_per_epoch=ready.steps_per_epoch,
            epochs=epochs,
            log=log,
            checkpoints=checkpoints,
            interruption=interruption,
            console=console,
            seconds=seconds,
        )
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    finally:
        checkpoints.close()
    if log.rows:
        draw(log.rows, workdir / "curves.png", title=f"{config.architecture} {config.width} on {dataset.name}")
    finished = log.last_epoch() == epochs
    if interruption.signal is not None and not finished:
        console.print(f"stopped at step {int(state.step)}, saved in {workdir}; the same command goes on from there")
        return 128 + interruption.signal

    path = workdir / "result.json"
    if begin == epochs * ready.steps_per_epoch and path.exists():  # nothing was trained: leave the run's figures
        _print(console, json.loads(path.read_text()), workdir)
        return 0
    speeds = [row["images_per_second"] for row in log.rows if row["images_per_second"]]
    result = {
        "dataset": dataset.name,
        "architecture": config.architecture,
        "width": config.width,
        "recipe": config.recipe,
        "weights": count_weights(state.params),
        "epochs": epochs,
        "seed": config.seed,
        "test_accuracy": log.rows[-1]["test_accuracy"],
        "test_images": len(dataset.test),
        "skipped_steps": int(state.skipped),
        "train_seconds": round(log.rows[-1]["seconds"], 1),
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax_version": jax.__version__,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)
    _print(console, result, workdir)
    return 0


def peak_memory() -> int:
    """The most bytes this process has held at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _print(console: "Console", result: dict[str, Any], workdir: Path) -> None:
    from rich.table import Table

    table = Table(show_header=False, title=f"{result['architecture']} {result['width']} on {result['dataset']}")
    table.add_row("weights", f"{result['weights']:,}")
    table.add_row("test accuracy", f"{result['test_accuracy']:.2%} of {result['test_images']:,} images")
    table.add_row("epochs", str(result["epochs"]))
    table.add_row("time", f"{result['train_seconds']:,.0f} s")
    if result["images_per_second"]:
        table.add_row("images per second", f"{result['images_per_second']:,.0f}")
    table.add_row("peak memory", f"{result['peak_memory_gib']:.2f} GiB")
    table.add_row("everything in", str(workdir))
    console.print(table)


if __name__ == "__main__":
    main()
