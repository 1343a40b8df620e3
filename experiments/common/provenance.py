"""States where figures come from: the devices, JAX's version, the commit, the memory of this process."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Returns the devices, JAX's version and the commit, for a row of results."""
    import jax

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"device": device, "jax_version": jax.__version__, "commit": commit()}


def commit() -> str | None:
    """Returns the commit of the code that runs, with "-dirty" if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        output = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()


def peak_memory() -> int:
    """Returns the largest number of bytes that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory of the program that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
