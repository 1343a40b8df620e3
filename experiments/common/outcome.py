"""Writes result.json at the end of a run, and prints its table."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import files, peak_memory, plots, results
from experiments.common.config import values
from experiments.common.setup import Setup
from lowcost.data.batches import random_rows
from lowcost.deploy.loading import Result
from lowcost.nn import stability_report
from lowcost.terminal import printable
from lowcost.train import checkpoint, loop, processes
from lowcost.train.calibration import fit_temperature
from lowcost.train.metrics_log import MetricsLog, finite
from lowcost.train.state import TrainState, count_weights

TEMPERATURE_IMAGES = 5000
"""Largest number of validation images, or training images where there are none, to which a temperature is fitted."""
OVERLAPS = {"mean_iou": "mean IoU", "mean_dice": "mean Dice"}
"""Figures of networks that label every point → their names in tables."""


def measured(ready: Setup, state: TrainState, log: MetricsLog) -> dict[str, Any]:
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
        found = {name: row.get(f"test_{name}_seeds", [row[f"test_{name}"]]) for name in names}
        tests = {name: [math.nan if x is None else x for x in figures] for name, figures in found.items()}
        epochs, by = [log.last_epoch()] * config.seeds, "last epoch"
    result: dict[str, Any] = {"chosen": {"epochs": epochs, "by": by}, "tests": tests}
    if dataset.task == "classes":
        part = dataset.validation or dataset.train
        some = random_rows(len(part), TEMPERATURE_IMAGES)
        least = 0.0 if dataset.validation else 1.0  # of images that it has learned, a network is rightly surer
        logits = ready.outputs(state.chosen, part.images[some])
        fitted = (fit_temperature(x, part.labels[some]) if np.isfinite(x).all() else 1.0 for x in logits)
        result["temperatures"] = [round(max(least, temperature), 4) for temperature in fitted]
    if config.norm_budget is not None:
        networks = ready.of_each_seed(state.chosen)
        reports = (stability_report(ready.net, variables, dataset.image_shape) for variables in networks)
        result["lipschitz_bounds"] = [report.lipschitz for report in reports]
    return result


def report(ready: Setup, state: TrainState, log: MetricsLog, figures: dict[str, Any] | None, console: Console) -> None:
    """Draws the curves, and writes and prints the result, unless it was there before."""
    workdir, last = ready.config.directory(), log.last_epoch()
    path = workdir / "result.json"
    if figures is None:  # a new result would hold other figures of time and memory
        console.print("this run is finished; nothing was left to do")
        result: dict[str, Any] = Result(path)
    else:
        if last < ready.epochs:
            console.print(
                f"ended after epoch {last} of {ready.epochs}: no better one for {ready.config.patience} epochs"
            )
        result = _result(ready, state, log, figures)
        files.write_whole(path, (json.dumps(finite(result), indent=2, allow_nan=False) + "\n").encode())
    draw(ready, state, log)
    print_result(console, result, workdir)


def draw(ready: Setup, state: TrainState, log: MetricsLog) -> None:
    """Draws the curves of the metrics so far; process 0 writes them."""
    if processes.is_process_0() and log.rows:
        title = f"{ready.config.architecture} {ready.config.width_name} on {ready.dataset.name}"
        chosen = [int(state.best["epoch"])] if state.best and ready.config.seeds == 1 else []
        plots.draw_curves(log.rows, ready.config.directory() / "curves.png", title=title, chosen=chosen)


def _result(ready: Setup, state: TrainState, log: MetricsLog, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of result.json."""
    config, row = ready.config, log.rows[-1]
    speeds, shares = ([r[x] for r in log.rows if r.get(x)] for x in ("images_per_second", "share_in_steps"))
    tests = figures.pop("tests")
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
        "test_accuracy_std": _deviation(accuracies) if accuracies and len(accuracies) > 1 else None,
        "test_accuracies": accuracies,
        "test_losses": tests["loss"],
        **{f"test_{name}": statistics.mean(found) for name, found in overlaps.items()},
        **{f"test_{name}s": found for name, found in overlaps.items()},
        **figures,
        **values(config, "init_from", "teacher"),
        "test_images": len(ready.dataset.test),
        "validation_images": len(ready.dataset.validation or ()),
        "train_images": len(ready.dataset.train),
        "steps": loop.steps_done(state),
        "skipped_steps": row["skipped"],
        "train_seconds": round(row["seconds"], 1),
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "share_in_steps": round(statistics.median(shares), 4) if shares else None,
        "peak_memory_gib": round(peak_memory.of_this_process() / 2**30, 2),
        "processes": jax.process_count(),
        **results.provenance(),
        "digest": checkpoint.digest(state),
    }


def _deviation(numbers: list[float]) -> float:
    """Returns the sample standard deviation; NaN if there is one among the numbers."""
    return float(np.std(numbers, ddof=1))


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
            table.add_row(f"test {words}", f"{share:.2%}" + (f" ± {_deviation(found):.2%}" if found[1:] else ""))
    if "lipschitz_bounds" in result:
        table.add_row("Lipschitz bound", f"{max(result['lipschitz_bounds']):,.4g}")
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
