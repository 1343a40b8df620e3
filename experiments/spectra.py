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
    data_dir: Path | None = None
    """Where the pictures are now, if no longer where they were."""


def main() -> None:
    """Parse the flags, print the report."""
    sys.exit(run(tyro.cli(SpectraConfig, description=SpectraConfig.__doc__)))


def run(arguments: SpectraConfig) -> int:
    """Print the stability report.

    Returns:
        The exit status: 0, or 2 where there is nothing to report on.
    """
    import jax

    from experiments import setup
    from lowcost.nn import stability_report
    from lowcost.train.loop import first_step

    try:
        ready, state = setup.reopen(arguments.workdir, arguments.data_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config, variables = ready.config, state.variables
    if config.seeds > 1:
        variables = jax.tree.map(lambda x: x[0], variables)
        print(f"the first of {config.seeds} networks, seed {config.seed}")
    report = stability_report(ready.net, variables, ready.dataset.image_shape)
    print(
        f"{config.architecture} {config.width} on {ready.dataset.name} after {first_step(state)} steps, h = {config.h}"
    )
    print(report)
    return 0


if __name__ == "__main__":
    main()
