"""States where figures come from: the devices, JAX's version, the commit."""

import subprocess
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
