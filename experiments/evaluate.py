"""Evaluates the newest checkpoint of a run on all test images: `python -m experiments.evaluate --workdir DIR`."""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.common import entry, runs
from lowcost.train.loop import first_step
from lowcost.train.state import count_weights


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The run to evaluate."""

    workdir: Path
    """Work directory of the run."""
    data_dir: Path | None = None
    """Folder of the images, if they were moved after training."""


def main(arguments: EvaluateConfig) -> None:
    """Prints accuracy and loss.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    ready, state = runs.reopen(arguments.workdir, arguments.data_dir)
    metrics, config = ready.evaluate(state.chosen), ready.config
    assert metrics is not None
    accuracies, losses = np.atleast_1d(metrics["accuracy"]), np.atleast_1d(metrics["loss"])
    weights, images = count_weights(state.params) // config.seeds, len(ready.dataset.test)
    network = f"{config.architecture} {config.width} ({weights:,} weights) after {first_step(state)} steps"
    print(f"{network}, on all {images:,} test images of {ready.dataset.name}:")
    for seed, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), start=config.seed):
        print(f"seed {seed}: accuracy {accuracy:.2%}, loss {loss:.4f}")
    if config.seeds > 1:
        print(f"mean: accuracy {accuracies.mean():.2%} ± {accuracies.std(ddof=1):.2%}")


if __name__ == "__main__":
    entry.run(main, EvaluateConfig)
