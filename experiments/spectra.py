"""The stability of a trained network, layer by layer: `python -m experiments.spectra --workdir DIR`."""

import dataclasses
import sys
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class SpectraConfig:
    """Exact linear bounds of every layer of a run's newest checkpoint, and a Lipschitz bound of the network."""

    workdir: Path
    """The work directory of a run."""


def main() -> None:
    """Parse the flags, print the report."""
    sys.exit(run(tyro.cli(SpectraConfig, description=SpectraConfig.__doc__)))


def run(arguments: SpectraConfig) -> int:
    """Print the stability report.

    Returns:
        The exit status: 0, or 2 where there is nothing to report on.
    """
    from experiments import setup
    from lowcost.nn import stability_report

    try:
        run = setup.trained(arguments.workdir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = run.config
    if config.seeds > 1:
        print(f"the first of {config.seeds} networks, seed {config.seed}")
    print(f"{config.architecture} {config.width} on {config.dataset} after {run.step} steps, h = {config.h}")
    print(stability_report(run.net, run.variables, run.image_shape))
    return 0


if __name__ == "__main__":
    main()
