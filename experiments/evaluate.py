"""Evaluate the newest checkpoint of a run on all test images: `python -m experiments.evaluate --workdir DIR`."""

import dataclasses
import sys
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy and loss of the newest checkpoint on all test images."""

    workdir: Path
    """The work directory of a run."""
    data_dir: Path | None = None
    """Where the pictures are now, if no longer where they were."""


def main() -> None:
    """Parse the flags, evaluate, print."""
    sys.exit(run(tyro.cli(EvaluateConfig, description=EvaluateConfig.__doc__)))


def run(arguments: EvaluateConfig) -> int:
    """Print accuracy and loss.

    Returns:
        The exit status: 0, or 2 where there is nothing to evaluate.
    """
    from experiments import setup
    from lowcost.train.loop import evaluate_all
    from lowcost.train.state import count_weights

    try:
        ready, state = setup.reopen(arguments.workdir, arguments.data_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    print(
        f"{config.architecture} {config.width} ({count_weights(state.params):,} weights) after {state.step} steps: "
        f"accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.4f} on all {len(test):,} test images of "
        f"{ready.dataset.name}"
    )
    return 0


if __name__ == "__main__":
    main()
