"""What each ingredient of the fast recipe is worth: `python -m experiments.ablation folder --data-dir DIR`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from experiments.common import entry
from experiments.common.config import Architecture, DatasetName, RecipeName, TrainConfig
from experiments.common.files import write_results
from experiments.common.flags import shown
from experiments.common.workdir import finished

if TYPE_CHECKING:
    from experiments.common.recipes import Recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "fast": {},
    "without whitening of the opening": {"whitening": False},
    "without an average of the weights": {"average": None},
    "AdamW in place of Muon": {"optimizer": "adamw"},
    "one learning rate for all weights": {"stencil_rate": 1.0},
    "halved rate in place of one cycle": {"schedule": "halving"},
    "resized crops in place of translations": {"shift": "resized_crop"},
    "random in place of alternating flips": {"flip": "random"},
    "no late decay of the matrices": {"matrix_decay": 0.0},
    "light augmentation to the end": {"hidden": 0.0},
    "paper": {},
}
"""The fast recipe with one ingredient changed; and both recipes as they are."""


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Train with the fast recipe, with each of its ingredients taken out, and with the paper's, and compare.

    Variants that are finished are skipped, the one that was stopped goes on. What so few epochs cannot tell from the
    fast recipe is left out.
    """

    dataset: tyro.conf.Positional[DatasetName] = "digits"
    """As in training."""
    data_dir: Path | None = None
    """Where the pictures or archives are."""
    architecture: Architecture = "implicit_rd"
    """As in training; network A."""
    train_images: int | None = None
    """Train on so many of the images."""
    epochs: int = 8
    """The budget of every variant."""
    seeds: int = 3
    """Networks of each variant."""
    images: str = ""
    """What the images are, in words, for the table."""
    workdir: Path = Path("runs/ablation")
    """Where the runs are."""
    out: Path = Path("experiments/results/ablation")
    """Writes OUT.jsonl and OUT.md."""


def main(arguments: AblationConfig) -> int:
    """Train all variants, one after another, and write what came of those that are finished."""
    from experiments.common import training

    told = f"{arguments.dataset} {shown(arguments, 'dataset', 'workdir', 'out')}".strip()
    rows: list[dict[str, Any]] = []
    status = 0
    for name, (config, recipe) in variants(arguments).items():
        ingredients = dataclasses.asdict(recipe)
        result = finished(config, ingredients)
        if result is None:
            code = training.run(config, recipe)
            if code == entry.DIVERGED and rows:  # nothing can be compared with a fast recipe that failed
                status = code
                continue
            if code:
                return code
            result = finished(config, ingredients)
            assert result is not None
        del result["recipe"], result["peak_memory_gib"]  # the variant says more; the process had others before
        rows.append({"variant": name, "images": arguments.images or arguments.dataset, "flags": told, **result})
        write_results(arguments.out, rows, markdown(rows))
    return status


def variants(arguments: AblationConfig) -> dict[str, tuple[TrainConfig, "Recipe"]]:
    """The run and the recipe of each variant."""
    from experiments.common.recipes import RECIPES

    which = f"{arguments.dataset}-{arguments.architecture}-{arguments.epochs}epochs-{arguments.seeds}seeds"
    which += "" if arguments.train_images is None else f"-{arguments.train_images}images"
    runs = {}
    for name, changes in VARIANTS.items():
        base: RecipeName = "paper" if name == "paper" else "fast"
        if {"matrix_decay", "hidden"} & changes.keys() and arguments.epochs <= RECIPES[base].late:
            continue
        config = TrainConfig(
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            architecture=arguments.architecture,
            train_images=arguments.train_images,
            recipe=base,
            epochs=arguments.epochs,
            seeds=arguments.seeds,
            evaluate_every=arguments.epochs,
            workdir=arguments.workdir / which / name.replace(" ", "-"),
        )
        runs[name] = config, dataclasses.replace(RECIPES[base], **changes)
    return runs


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, each variant beside the fast recipe, which is the first; and what of VARIANTS is not in it."""
    first = rows[0]
    missing = [name for name in VARIANTS if name not in {row["variant"] for row in rows}]
    fast = first["test_accuracies"]
    lines = [
        f"{first['architecture']} {first['width']} on {first['images']}: {first['epochs']} epochs of "
        f"{first['train_images']:,} images, accuracy of the last epoch on all {first['test_images']:,} test images, "
        f"mean ± standard deviation of {len(fast)} seeds; difference to the fast recipe seed by seed, ± its standard "
        f"error. {first['device']}.\n",
        "| recipe | test accuracy | difference |\n|---|---|---|\n",
    ]
    for row in rows:
        there = row["test_accuracies"]
        apart = [100 * (x - y) for x, y in zip(there, fast, strict=True)]
        difference = "" if row is first else _with_error(apart)
        spread = f" ± {100 * row['test_accuracy_std']:.2f}" if row["test_accuracy_std"] is not None else ""
        lines.append(f"| {row['variant']} | {100 * row['test_accuracy']:.2f}{spread} % | {difference} |\n")
    if missing:
        lines.append(f"\nNot measured: {', '.join(missing)}.\n")
    lines.append(f"\nMade by `python -m experiments.ablation {first['flags']}`.\n")
    return lines[0] + "\n" + "".join(lines[1:])


def _with_error(apart: list[float]) -> str:
    import statistics

    mean = f"{statistics.mean(apart):+.2f}"
    return mean if len(apart) == 1 else f"{mean} ± {statistics.stdev(apart) / len(apart) ** 0.5:.2f}"


if __name__ == "__main__":
    entry.run(main, AblationConfig, long=True)
