"""Evaluate the newest checkpoint of a run on all test images: `python -m experiments.evaluate --workdir DIR`."""

import dataclasses
from pathlib import Path

from experiments.common import entry


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy and loss of the newest checkpoint on all test images."""

    workdir: Path
    """The work directory of a run."""
    data_dir: Path | None = None
    """Where the pictures are now, if no longer where they were."""


def main(arguments: EvaluateConfig) -> None:
    """Prints accuracy and loss.

    Raises:
        ValueError, OSError: there is nothing to evaluate.
    """
    import numpy as np

    from experiments.common import runs
    from lowcost.train.loop import evaluate_all, first_step
    from lowcost.train.state import count_weights

    ready, state = runs.reopen(arguments.workdir, arguments.data_dir)
    config, test = ready.config, ready.dataset.test
    metrics = evaluate_all(
        ready.eval_step,
        state,
        test.images,
        test.labels,
        batch_size=config.batch_size,
        mesh=ready.mesh,
    )
    assert metrics is not None
    accuracies, losses = np.atleast_1d(metrics["accuracy"]), np.atleast_1d(metrics["loss"])
    weights = count_weights(state.params) // config.seeds
    print(
        f"{config.architecture} {config.width} ({weights:,} weights) after {first_step(state)} steps, "
        f"on all {len(test):,} test images of {ready.dataset.name}:"
    )
    for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True)):
        print(f"seed {config.seed + i}: accuracy {accuracy:.2%}, loss {loss:.4f}")
    if config.seeds > 1:
        print(f"mean: accuracy {accuracies.mean():.2%} ± {accuracies.std(ddof=1):.2%}")


if __name__ == "__main__":
    entry.run(main, EvaluateConfig)
