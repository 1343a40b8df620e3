"""Compares fine-tuning with training from scratch on few images: `python -m experiments.transfer --data-dir DIR`.

All variants train the same network with the same recipe. Finished runs are skipped, stopped ones resume.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.common import entry, training
from experiments.common.config import Architecture, RecipeName, TrainConfig, derived
from experiments.common.recipes import RECIPES, Recipe
from experiments.common.results import Results, Row, accuracy, page
from lowcost.deploy.loading import Result

LONGER = 3
"""The long variant trains for this multiple of the epochs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The images, the trained network, and where to write the table."""

    data_dir: Path
    """Folder of the images, as in training."""
    init_from: str = "cifar7-implicit_rd-A"
    """The trained network: a work directory, a file, or the name of a released network."""
    architecture: Architecture = "implicit_rd"
    """Its architecture."""
    kernel_size: int = 3
    """Points of its stencils per axis."""
    recipe: RecipeName = "fast"
    """Recipe of all variants."""
    epochs: int = 40
    """Epochs of all variants but the long one."""
    batch_size: int = 30
    """Images per optimiser step."""
    seeds: int = 5
    """Number of networks of each variant."""
    images: str = "the images in DIR"
    """Description of the images, for the table."""
    workdir: Path = Path("runs/transfer")
    """Folder of the runs."""
    out: Path = Path("runs/results/transfer")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> int:
    """Trains all variants, one after another, and writes the results of those that are finished."""
    results = Results(config, markdown, without=("workdir",))
    runs = {variant(config, changes): name for name, changes in variants(config).items()}

    def report(run: TrainConfig) -> None:
        result = Result(run.directory() / "result.json")
        results.add([{"variant": runs[run], "images": config.images, "start": config.init_from, **result}])

    recipe: Recipe = RECIPES[config.recipe]
    return training.run_all(((run, recipe) for run in runs), report)


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """Returns what each variant changes in the run from scratch."""
    tuned = {"init_from": config.init_from}
    return {
        "from scratch": {},
        f"from scratch, {LONGER} times as long": {"epochs": LONGER * config.epochs},
        "fine-tuned": tuned,
        "fine-tuned at a tenth of the rate": {**tuned, "loaded_rate": 0.1},
        "only the classifier": {**tuned, "loaded_rate": 0.0},
    }


def variant(config: Config, changes: dict[str, Any]) -> TrainConfig:
    """Returns the run of a variant, which is evaluated at its end."""
    epochs = changes.get("epochs", config.epochs)
    name = "-".join(str(changes.get(field, "")).replace("/", "_") for field in ("epochs", "init_from", "loaded_rate"))
    shared = {"init_from": None, "evaluate_every": epochs, "workdir": config.workdir / f"run-{name}"}
    return derived(config, dataset="folder", **{**shared, **changes})


def markdown(rows: list[Row], name: str = "transfer") -> str:
    """Returns the page."""
    shown = [{**row, "accuracy": accuracy(row)} for row in rows]
    return page(shown, name, "transfer")


if __name__ == "__main__":
    entry.run(main, Config, long=True)
