"""What each ingredient of the fast recipe is worth: `python -m experiments.ablation folder --data-dir DIR`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.config import Architecture, DatasetName, RecipeName, TrainConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "fast": {},
    "without whitening of the opening": {"whitening": False},
    "without an average of the weights": {"average": None},
    "AdamW in place of Muon": {"optimizer": "adamw"},
    "one learning rate for all weights": {"stencil_rate": 1.0},
    "halved rate in place of one cycle": {"schedule": "halving"},
    "resized crops in place of translations": {"shift": "resized_crop"},
    "random in place of alternating flips": {"flip": "random"},
    "light augmentation to the end": {"heavier_after": None},
    "paper": {},
}
"""The fast recipe with one ingredient changed; and both recipes as they are."""


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Train with the fast recipe, with each of its ingredients taken out, and with the paper's, and compare.

    Variants that are finished are skipped, the one that was stopped goes on.
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
    from experiments import train
    from experiments.recipes import RECIPES

    for name, changes in VARIANTS.items():
        base: RecipeName = "paper" if name == "paper" else "fast"
        recipe = dataclasses.replace(RECIPES[base], **changes)
        workdir = arguments.workdir / name.replace(" ", "-")
        config = TrainConfig(
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            architecture=arguments.architecture,
            train_images=arguments.train_images,
            recipe=base,
            epochs=arguments.epochs,
            seeds=arguments.seeds,
            workdir=workdir,
        )
        if not (workdir / "result.json").exists() and (code := train.run(config, recipe)):
            return code
        write(arguments)
    return 0


def write(arguments: AblationConfig) -> None:
    """OUT.jsonl and OUT.md from the results that are there."""
    rows = []
    for name in VARIANTS:
        path = arguments.workdir / name.replace(" ", "-") / "result.json"
        if path.exists():
            result = json.loads(path.read_text())
            del result["recipe"]  # the variant says more
            rows.append({"variant": name, "images": arguments.images or arguments.dataset, **result})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments.out.with_suffix(".md").write_text(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, each variant beside the fast recipe."""
    first = rows[0]
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
    return lines[0] + "\n" + "".join(lines[1:])


def _with_error(apart: list[float]) -> str:
    import statistics

    mean = f"{statistics.mean(apart):+.2f}"
    return mean if len(apart) == 1 else f"{mean} ± {statistics.stdev(apart) / len(apart) ** 0.5:.2f}"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(AblationConfig, description=AblationConfig.__doc__)))
