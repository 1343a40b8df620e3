"""Checkpoints with orbax: written beside the run while it goes on, renamed into place when whole, newest first."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run, by the number of steps done.

    Args:
        directory: where they lie; made if missing.
        keep: the newest so many are kept.
    """

    def __init__(self, directory: Path, keep: int = 2):
        # A checkpoint appears under its name only when whole: a kill while saving leaves the one before.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Start to save state and meta (JSON); `close` and the next save wait for it. A step saved before is kept."""
        if step != self.latest():
            copy = jax.tree.map(jnp.copy, state)  # the next step may donate the original while this is being written
            items = {"state": ocp.args.StandardSave(copy), "meta": ocp.args.JsonSave(meta)}
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """State and meta of this step, the state with the shapes, dtypes and shardings of `like`.

        Raises:
            ValueError: the checkpoint is damaged, or of another network.
        """
        items = {"state": ocp.args.StandardRestore(like), "meta": ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever a damaged file makes of itself in the layers below
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"checkpoint {self._manager.directory / str(step)} cannot be read ({reason}); "
                "move it away to go on from the one before"
            ) from error
        return restored["state"], restored["meta"]

    def close(self) -> None:
        """Wait, and release the directory."""
        self._manager.close()
