"""Reports the stability of a trained network, layer by layer: `python -m experiments.spectra --workdir DIR`.

Prints exact linear bounds of every layer of the newest checkpoint, and a Lipschitz bound of the network.
"""

import dataclasses
from pathlib import Path

from experiments.common import entry, runs
from lowcost.nn import stability_report


@dataclasses.dataclass(frozen=True)
class SpectraConfig:
    """The run to report on."""

    workdir: Path
    """Work directory of the run."""


def main(arguments: SpectraConfig) -> None:
    """Prints the stability report.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    run = runs.trained(arguments.workdir)
    config = run.config
    if config.seeds > 1:
        print(f"the first of {config.seeds} networks, seed {config.seed}")
    network = f"{config.architecture} {config.width_name} on {config.dataset}"
    chosen = f" ({run.card.get('chosen', 'the best epoch so far')})" if config.keeps_best else ""
    print(f"{network} after {run.card['steps']} steps{chosen}, h = {config.h}")
    print(stability_report(run.net, run.variables, run.image_shape))


if __name__ == "__main__":
    entry.run(main, SpectraConfig)
