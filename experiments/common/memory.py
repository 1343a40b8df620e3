"""Measures the memory that one form of a network needs: `python -m experiments.common.memory FORM PATH` prints MiB.

A program of its own, with imports inside: a process that imports more than the form needs would need more memory.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.provenance import peak_memory


def peak(form: str, path: Path) -> float:
    """Returns the MiB of a process that loads a form from a file or a work directory and classifies one image."""
    command = [sys.executable, "-m", "experiments.common.memory", form, str(path)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def _classify(form: str, path: Path) -> None:
    call: Callable[[Any], Any]
    if form.startswith("JAX"):
        import jax

        from experiments.common import runs
        from lowcost import deploy

        run = runs.trained(path)
        shape = run.image_shape
        folded = form == "JAX, folded" and deploy.fold(run.net, run.variables, shape)
        call = jax.jit(folded or partial(run.net.apply, run.variables))
    else:
        from experiments.predict import PredictConfig, load

        call, _, shape = load(PredictConfig((), model=path))
    np.asarray(call(np.zeros((1, *shape), np.float32)))


if __name__ == "__main__":
    _classify(sys.argv[1], Path(sys.argv[2]))
    print(peak_memory() / 2**20)
