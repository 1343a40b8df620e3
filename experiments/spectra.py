"""The stability of a trained network, layer by layer: `python -m experiments.spectra --workdir DIR`."""

import dataclasses
from pathlib import Path

from experiments.common import entry


@dataclasses.dataclass(frozen=True)
class SpectraConfig:
    """Exact linear bounds of every layer of a run's newest checkpoint, and a Lipschitz bound of the network."""

    workdir: Path
    """The work directory of a run."""


def main(arguments: SpectraConfig) -> None:
    """Prints the stability report.

    Raises:
        ValueError, OSError: there is nothing to report on.
    """
    from experiments.common import runs
    from lowcost.nn import stability_report

    run = runs.trained(arguments.workdir)
    config = run.config
    if config.seeds > 1:
        print(f"the first of {config.seeds} networks, seed {config.seed}")
    print(f"{config.architecture} {config.width} on {config.dataset} after {run.step} steps, h = {config.h}")
    print(stability_report(run.net, run.variables, run.image_shape))


if __name__ == "__main__":
    entry.run(main, SpectraConfig)
