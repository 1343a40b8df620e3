"""Measures the memory of one form of a network: `python -m experiments.common.peak_memory FORM PATH` prints MiB.

A program of its own, with imports inside: a process that imports more than the form needs would need more memory.
"""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np


def of_this_process() -> int:
    """Returns the largest number of bytes that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory of the program that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):  # which sandboxes may leave out
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def of_form(form: str, path: Path) -> float:
    """Returns the MiB of a process that loads a form from a file or a work directory and classifies one image."""
    command = [sys.executable, "-m", "experiments.common.peak_memory", form, str(path)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def _classify(form: str, path: Path) -> None:
    if form == "JAX, folded":
        import jax

        from experiments.common import runs
        from lowcost import deploy

        run = runs.trained(path)
        folded = jax.jit(deploy.fold(run.net, run.variables, run.image_shape))
        np.asarray(folded(np.zeros((1, *run.image_shape), np.float32)))
    else:
        from experiments.common import classifiers

        _ = classifiers.load(workdir=path) if form == "JAX" else classifiers.load(model=path)  # tries it


if __name__ == "__main__":
    _classify(sys.argv[1], Path(sys.argv[2]))
    print(of_this_process() / 2**20)
