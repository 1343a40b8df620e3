"""Measures what the parts of a training run are worth: `python -m experiments.ablation folder --data-dir DIR`.

Trains network A with the fast recipe, and then with changes to it. The study `recipe` replaces one ingredient of the
recipe at a time; `reach` changes how far the implicit steps reach; `circulant` changes the circulant steps;
`distillation` adds teachers. Finished runs are skipped, stopped ones resume. Ingredients that act only after more
epochs are left out.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import tyro

from experiments.common import entry, recipes, training
from experiments.common.config import Architecture, DatasetName, RecipeName, TrainConfig, derived, suffix
from experiments.common.results import Results, Row, accuracy, page, table
from lowcost.deploy.loading import Json, Result, configuration
from lowcost.nn import block_channels
from lowcost.nn.networks import least_points
from lowcost.terminal import warn
from lowcost.train.metrics_log import epoch_rows

Study = Literal["recipe", "reach", "circulant", "distillation"]

VARIANTS: dict[Study, dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""For each study, the run with the fast recipe, and the changes of the others: ingredients, or fields of the run."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to compare, and where to write the table."""

    dataset: tyro.conf.Positional[DatasetName] = "digits"
    """Data set, as in training."""
    data_dir: Path | None = None
    """Folder of the images or archives, or the file of the arrays."""
    grid_axes: int | None = None
    """arrays: number of axes of the grid, as in training."""
    length: int | None = None
    """arrays: resample every signal to this number of points, as in training."""
    study: Study = "recipe"
    """What changes. recipe: one ingredient of the fast recipe. reach: the reach, the boundary, the stencils and the
    time step of the implicit steps, and explicit steps. circulant: the integrator and the stencil size of circulant_rd,
    and depth-wise steps. distillation: the share of the loss that compares with --teacher."""
    teacher: tuple[str, ...] = ()
    """--study distillation: the teachers, as in training."""
    architecture: Architecture = "implicit_rd"
    """Network, as in training."""
    train_images: int | None = None
    """Number of training images. None: all."""
    validation_share: float = 0.0
    """Share of these images that training leaves out, and on which the variants are compared. With 0 the table shows
    test images alone; do not choose a variant by them."""
    batch_size: int = 100
    """Images per optimiser step."""
    epochs: int = 8
    """Epochs of every variant."""
    seeds: int = 3
    """Number of networks of each variant."""
    images: str = ""
    """Description of the images, for the table."""
    workdir: Path = Path("runs/ablation")
    """Folder of the runs."""
    out: Path | None = None
    """Writes OUT.md and OUT.jsonl. None: runs/results/ablation, for other studies than recipe
    runs/results/ablation_STUDY."""


def main(config: Config) -> int:
    """Trains all variants, one after another, and writes the results of those that are finished."""
    if config.study == "reach" and not config.architecture.startswith("implicit"):
        raise ValueError(
            f"--architecture must have implicit steps for --study reach, got {config.architecture}; omit it"
        )
    if config.study == "circulant" and config.architecture != "circulant_rd":
        expected = "--architecture must be circulant_rd for --study circulant"
        raise ValueError(f"{expected}, got {config.architecture}; add --architecture circulant_rd")
    if (config.study == "distillation") != bool(config.teacher):
        raise ValueError(f"--teacher must name networks for --study distillation alone, got {config.teacher}")
    config = dataclasses.replace(config, out=config.out or Path("runs/results") / name_of(config.study))
    results = Results(config, markdown, without=("dataset", "workdir"))
    runs = variants(config)
    names = {run: name for name, (run, _) in runs.items()}

    def report(run: TrainConfig) -> None:
        result = Result(run.directory() / "result.json")
        del result["recipe"], result["peak_memory_gib"]  # the memory is that of all variants before, too
        about = {"study": config.study, "variant": names[run], "images": config.images or config.dataset}
        last = epoch_rows(run.directory() / "metrics.jsonl")[-1]
        validation = _validation(last) if "validation_accuracy" in last else {}
        results.add([{**about, "flags": f"{config.dataset} {results.flags}", **result, **validation}])

    first, *others = runs.values()
    if status := training.run_all([first], report):  # nothing can be compared with a first run that failed
        return status
    data = configuration(first[0].directory())["data"]
    return training.run_all([pair for pair in others if _fits(pair[0], data, names[pair[0]])], report)


def _fits(run: TrainConfig, data: Json, name: str) -> bool:
    """Returns whether the grid is large enough for the stencils of a run; a line on stderr reports a run left out."""
    least = least_points(run.kernel_size or 3, len(block_channels(run.width)), halves=True)
    if data.get("masked") or min(data["image_shape"][:-1]) >= least:  # signals with a mask are padded
        return True
    warn(f"left out {name!r}, whose stencils need {least} points per axis of the grid")
    return False


def _validation(last: Row) -> Row:
    """Returns the accuracies on the validation images after the last epoch."""
    found = last.get("validation_accuracy_seeds", [last["validation_accuracy"]])
    deviation = stdev(found) if len(found) > 1 else None
    return {"validation_accuracy": mean(found), "validation_accuracy_std": deviation, "validation_accuracies": found}


def variants(config: Config) -> dict[str, tuple[TrainConfig, recipes.Recipe]]:
    """Returns the run and the recipe of each variant."""
    group = "" if config.study == "recipe" else f"{config.study}-"
    group += f"{config.dataset}-{config.architecture}-{config.epochs}epochs-{config.seeds}seeds"
    group += suffix(config, "train_images", "length", "batch_size")
    group += f"-validation{config.validation_share:g}" if config.validation_share else ""
    fields, runs = {field.name for field in dataclasses.fields(TrainConfig)}, {}
    for name, changes in VARIANTS[config.study].items():
        base: RecipeName = "paper" if name == "paper" else "fast"
        if {"matrix_decay", "hidden"} & changes.keys() and config.epochs <= recipes.RECIPES[base].late:
            continue
        workdir = config.workdir / group / name.replace(" ", "-")
        changes = {field: tuple(x) if isinstance(x, list) else x for field, x in changes.items()}
        of_run = {field: value for field, value in changes.items() if field in fields}
        run = derived(config, **{"recipe": base, "evaluate_every": config.epochs, "workdir": workdir, **of_run})
        ingredients = {field: value for field, value in changes.items() if field not in fields}
        runs[name] = run, dataclasses.replace(recipes.RECIPES[base], **ingredients)
    return runs


def name_of(study: Study) -> str:
    """Returns the name of the page of a study."""
    return "ablation" if study == "recipe" else f"ablation_{study}"


def markdown(rows: list[Row], name: str = "") -> str:
    """Returns the page: each variant beside the first one of its study; and the variants that are missing."""
    first = rows[0]
    study: Study = first.get("study", "recipe")
    part = "validation" if "validation_accuracies" in first else "test"

    def difference(row: Row) -> str:
        pairs = zip(row[f"{part}_accuracies"], first[f"{part}_accuracies"], strict=True)
        values = [100 * (x - y) for x, y in pairs]
        error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
        return "" if row is first else f"{mean(values):+.2f}{error}"

    columns: dict[str, Any] = {study: "{variant}"} | (
        {"weights": "{weights:,}"} if study in ("reach", "circulant") else {}
    )
    columns |= {f"{part} accuracy": partial(accuracy, part=part), "difference": difference, "test accuracy": accuracy}
    missing = [variant for variant in VARIANTS[study] if variant not in {row["variant"] for row in rows}]
    note = f"\n\nNot measured: {', '.join(missing)}." if missing else ""
    compared = f"{first['validation_images']:,} validation images" if part == "validation" else "the test images"
    parts = {"seeds": len(first["test_accuracies"]), "study": study, "compared": compared}
    parts["table"] = table(rows, columns) + note
    return page(rows, name or name_of(study), "ablation", **parts)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
