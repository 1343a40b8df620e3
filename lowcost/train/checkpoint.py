"""Saves checkpoints with orbax: written in the background, sealed by a manifest, and verified before use."""

import hashlib
import itertools
import json
import re
import shutil
import tempfile
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from lowcost import disk
from lowcost.terminal import first_line, warn
from lowcost.train import manifest
from lowcost.train.manifest import DamageError
from lowcost.train.mesh import place
from lowcost.train.processes import from_process_0, is_process_0

FILE_BYTES = 16384
"""The largest size of a leaf's files besides its values."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: number of steps done.
        state: the state, with the requested shapes, dtypes and shardings.
        meta: the JSON that was saved with the state.
        digest: see `digest`; of the whole state, even if only parts were restored.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    digest: str


class Checkpoints:
    """The checkpoints of one run: directory/STEP/state by orbax, directory/STEP/manifest with the sha256 of each file.

    All processes hold the same state. Only process 0 reads and writes files. `restore_newest` sends the state from it
    to the other processes, so all processes must call it.

    Args:
        directory: folder of the checkpoints; the owner makes it if missing.
        run: a dict of JSON values that identifies the run; `restore_newest` raises an error for a checkpoint of another
            run. None stands for an empty dict.
        keep: number of newest checkpoints to keep.
        owned: True for the run that writes the checkpoints. With False they are only read: nothing is renamed or
            removed.

    Raises:
        ValueError: keep is below 1; or the path of the directory contains \\ or ":/", or is not UTF-8, so that orbax
            could not read from it.
    """

    def __init__(self, directory: Path, *, run: dict[str, Any] | None = None, keep: int = 2, owned: bool = True):
        self._directory, self._run, self._keep, self._owned = directory.absolute(), run or {}, keep, owned
        self._writing: Future[None] | None = None
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}; the newest checkpoint is needed to resume")
        if re.search(r"\\|:/|[\udc80-\udcff]", str(self._directory)):
            raise ValueError(f"directory must be UTF-8 without \\ or ':/', got {str(directory)!r}; choose another one")
        if not is_process_0():
            return
        if owned:
            self._directory.mkdir(parents=True, exist_ok=True)
            for unfinished in self._directory.glob("tmp-*"):
                shutil.rmtree(unfinished, ignore_errors=True)  # after a kill; a reader may still hold a file
        # One folder per leaf, since orbax loses OCDBT files below a name with [, * or ?.
        process_0 = MultiprocessingOptions(primary_host=0, active_processes={0})
        self._orbax = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=process_0)
        self._writer = ThreadPoolExecutor(1, "checkpoint")

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to save state and meta (JSON); the next save and `close` wait until it is written and read back.

        Raises:
            OSError: the previous save failed; older checkpoints are intact.
        """
        self._wait()
        if is_process_0():
            # A copy, since the next step may donate the original before it is written.
            copy = jax.device_put(jax.tree.map(_on_one_device, state), may_alias=False)
            self._writing = self._writer.submit(self._write, step, copy, meta)

    def restore_newest(self, like: Any) -> Restored | None:
        """Returns the newest valid checkpoint, or None if there never was one.

        Newer damaged checkpoints are renamed to damaged-STEP-N, with one line for each on stderr. Nothing is deleted.

        Args:
            like: a state with the shapes, dtypes and shardings to restore to; parts may be missing unless owned.

        Raises:
            ValueError: a checkpoint is of another network, run or step, and nothing was renamed; or no valid one is
                left.
            OSError: a checkpoint cannot be read, which does not prove damage; nothing was renamed.
        """
        self._wait()
        restored = from_process_0(lambda: self.read_newest(like))
        if restored is None:
            return None
        # Outside of the verification, since a lack of device memory is no damage.
        return restored._replace(state=jax.tree.map(lambda x, y: place(x, y.sharding), restored.state, like))

    def close(self) -> None:
        """Waits for the last save and releases the directory.

        Raises:
            OSError: the last save failed; older checkpoints are intact.
        """
        try:
            self._wait()
        finally:
            if is_process_0():
                self._writer.shutdown()
                self._orbax.close()

    def read_newest(self, like: Any) -> Restored | None:
        """Returns what `restore_newest` returns, as arrays of NumPy; for process 0, which alone can read files.

        Args, Raises: as in `restore_newest`.
        """
        damaged: dict[Path, DamageError] = {}
        steps = saved_steps(self._directory)
        for step in steps:
            path = self._directory / str(step)
            try:
                restored = self._read(path, step, like)
            except Exception as error:
                if not path.exists():
                    break
                if not isinstance(error, DamageError):
                    raise
                damaged[path] = error
                continue
            self._set_aside(damaged, f"using step {step}")
            return restored
        if saved_steps(self._directory) != steps:  # the run that writes them has replaced some meanwhile
            return self.read_newest(like)
        self._set_aside(damaged, "no older one is left")
        if damaged or any(self._directory.glob("damaged-*")):
            remedy = "put back a copy of one, or train from step 0 in another directory"
            raise ValueError(f"{self._directory} must hold a valid checkpoint, got damaged ones only; {remedy}")
        return None

    def _read(self, path: Path, step: int, like: Any) -> Restored:
        if self._owned:
            return self._read_from(path, path, step, like)
        with tempfile.TemporaryDirectory() as private:  # a copy, since the owner may remove the original meanwhile
            return self._read_from(shutil.copytree(path, Path(private) / path.name), path, step, like)

    def _read_from(self, source: Path, path: Path, step: int, like: Any) -> Restored:
        record = manifest.verified(source)
        expected, got = {"step": step, **self._run}, {"step": record["step"], **record["run"]}
        if name := next((name for name in expected | got if expected.get(name) != got.get(name)), ""):
            what = f"{path} must be a checkpoint of {name} {expected.get(name)}, got {name} {got.get(name)}"
            raise ValueError(f"{what}; put back the run's own checkpoint, or remove this one")
        leaves = _named(like)
        types, saved = _types(leaves), record["types"]
        names = types | saved if self._owned else types
        if name := next((name for name in names if types.get(name) != saved.get(name)), ""):
            what = f"{path} must hold {name} as {types.get(name, 'missing')}, got {saved.get(name, 'missing')}"
            raise ValueError(f"{what}, of another network; choose another directory, or the saved configuration")
        leaves = self._leaves(source, record, {name: np.empty(x.shape, x.dtype) for name, x in leaves.items()})
        state = jax.tree.unflatten(jax.tree.structure(like), leaves.values())
        return Restored(step, state, record["meta"], _digest(record["sha256"]))

    def _leaves(self, path: Path, record: dict[str, Any], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns leaves by name, read by orbax from verified files."""
        types = ocp.checkpoint_utils.construct_restore_args(like)
        arguments = ocp.args.PyTreeRestore(like, restore_args=types, partial_restore=True)
        try:
            leaves = self._orbax.restore(path / "state", args=arguments)
        except Exception as error:  # of any type, for lack of memory, threads or file handles
            raise OSError(f"{path} is intact but cannot be read here ({first_line(error)}); try again") from error
        for name, digest in _digests(leaves).items():
            if digest != record["sha256"][name]:
                raise OSError(f"{path} must give {name} as saved, got other values from intact files; try again")
        return {name: leaves[name] for name in like}

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except Exception as error:  # of any type, for a full disk
            what = f"no checkpoint could be written to {self._directory} ({first_line(error)})"
            remedy = (
                "older checkpoints, if there are any, are intact: fix the cause and rerun the same command to resume"
            )
            raise OSError(f"{what}; {remedy}") from error

    def _write(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        leaves, path = _named(jax.device_get(state)), self._directory / str(step)
        record = {"step": step, "run": self._run, "meta": meta, "types": _types(leaves), "sha256": _digests(leaves)}
        if path.exists():  # a resumed run saves its first step again
            if manifest.verified(path)["sha256"] != record["sha256"]:
                expected = f"{path} must hold the state to save"
                raise OSError(f"{expected}, got another state of this step; choose another directory")
            return
        unfinished = path.with_name(f"tmp-saving-{step}")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "state").mkdir(parents=True)
        room = unfinished / "room"
        # For one error line on a full disk, where orbax prints hundreds.
        disk.reserve(room, sum(x.nbytes + FILE_BYTES for x in leaves.values()))
        room.unlink()
        self._orbax.save(unfinished / "state", args=ocp.args.PyTreeSave(leaves))
        manifest.write(unfinished, record)
        self._leaves(unfinished, manifest.verified(unfinished), leaves)
        unfinished.rename(path)
        disk.sync(self._directory)
        for old in saved_steps(self._directory)[self._keep :]:
            deleting = path.with_name(f"tmp-deleting-{old}-{uuid.uuid4().hex}")  # so that no reader finds half of it
            path.with_name(str(old)).rename(deleting)
            shutil.rmtree(deleting, ignore_errors=True)  # the next run deletes what a reader holds

    def _set_aside(self, damaged: dict[Path, DamageError], outcome: str) -> None:
        for path, reason in damaged.items():
            done = ""
            if self._owned:
                names = (path.with_name(f"damaged-{path.name}-{n}") for n in itertools.count(1))
                done = f"set aside as {path.rename(next(name for name in names if not name.exists())).name}, "
            warn(f"{path} is damaged ({reason}); {done}{outcome}")


def saved_steps(directory: Path) -> list[int]:
    """Returns the steps of all checkpoints in a directory, the newest first; none if it does not exist."""
    paths = directory.iterdir() if directory.exists() else ()
    return sorted((int(path.name) for path in paths if path.name.isdecimal()), reverse=True)


def digest(state: Any) -> str:
    """Returns the sha256 of the names and values of all leaves of state: equal digests mean equal bits."""
    return _digest(_digests(_named(jax.tree.map(lambda x: np.asarray(_on_one_device(x)), state))))


def _on_one_device(x: jax.Array) -> jax.Array:
    return x.addressable_data(0) if x.is_fully_replicated else x


def _named(state: Any) -> dict[str, Any]:
    """Returns leaves by name, such as params.opening.stencil."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _types(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def _digests(leaves: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in leaves.items()}


def _digest(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
