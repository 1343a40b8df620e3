"""Checkpoints with orbax: written beside the run while it goes on, verified when read, the newest valid one first."""

import contextlib
import errno
import functools
import gc
import hashlib
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from lowcost.train.mesh import place
from lowcost.train.processes import from_first, is_first

_MACHINE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
"""Errors in reading that are the machine's, and say nothing about the file."""


class _DamageError(Exception):
    """A checkpoint is not what was saved."""


class Checkpoints:
    """The checkpoints of one run, by the number of steps done.

    Of several processes, which hold the same state, the first reads and writes; all must call `restore_newest`.

    Args:
        directory: where they lie; made if missing.
        keep: the newest so many are kept.
        owned: whether this is the run that writes them; another one only reads, and neither mends nor clears anything.
    """

    def __init__(self, directory: Path, keep: int = 2, *, owned: bool = True):
        self._directory, self._owned = directory.absolute(), owned
        self._writing: Future[None] | None = None
        if not is_first():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*") if owned else ():
            shutil.rmtree(unfinished)  # what a kill left behind
        # A checkpoint appears under its name only when whole: a kill while saving leaves the one before. The thread
        # below takes the place of orbax's own, which cannot hash; lightweight means to open unread what may be damaged.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            lightweight_initialize=True,
            create=False,
            multiprocessing_options=MultiprocessingOptions(primary_host=0, active_processes={0}),
        )
        self._open = functools.partial(ocp.CheckpointManager, self._directory, options=options)
        self._manager = self._open()
        self._writer = ThreadPoolExecutor(1, "checkpoint")

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Start to save state and meta (JSON); `close` and the next save wait for it. The newest step is kept as it is.

        Raises:
            OSError: the save before could not be written; older checkpoints are as they were.
        """
        self._wait()
        if is_first() and step != self._manager.latest_step():
            # A copy, since the next step may donate the original while this is being written.
            whole = jax.device_put(jax.tree.map(_on_one_device, state), may_alias=False)
            self._writing = self._writer.submit(self._write, step, whole, meta)

    def restore_newest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest valid checkpoint, or None where there is none.

        Damaged ones met before it are renamed to damaged-STEP-N, with a line on stderr for each; nothing is deleted.

        Args:
            like: a state with the shapes, dtypes and shardings to restore to.

        Raises:
            ValueError: one holds another network, and nothing was renamed; or all are damaged.
        """
        self._wait()
        with _quiet():
            restored = from_first(lambda: self._newest_valid(like))
        if restored is None:
            return None
        step, state, meta = restored
        # On the devices only now: that they lack memory is no damage.
        return step, jax.tree.map(lambda x, y: place(x, y.sharding), state, like), meta

    def _newest_valid(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        damaged: dict[Path, _DamageError] = {}
        paths = [path for path in self._directory.iterdir() if path.name.isdecimal()]
        for path in sorted(paths, key=lambda path: int(path.name), reverse=True):
            try:
                state, meta = self._read_verified(path, like)
            except _DamageError as error:
                if not self._owned and not path.exists():  # the run that writes them has just let go of it
                    return self._newest_valid(like)
                damaged[path] = error
                continue
            self._set_aside(damaged, f"going on from step {path.name}")
            return int(path.name), state, meta
        self._set_aside(damaged, "no older one is left")
        if damaged:
            now = ", and now named damaged-*" if self._owned else ""
            raise ValueError(
                f"all checkpoints in {self._directory} are damaged{now}: {len(damaged)}; "
                f"put back a copy of one, or train again from the first step"
            )
        return None

    def close(self) -> None:
        """Wait, and release the directory.

        Raises:
            OSError: the last save could not be written; older checkpoints are as they were.
        """
        try:
            self._wait()
        finally:
            if is_first():
                self._writer.shutdown()
                self._manager.close()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except Exception as error:  # a full disk speaks through several layers
            raise OSError(
                f"no checkpoint could be written to {self._directory} ({_first_line(error)}); the older ones are "
                "untouched: mend that, and the same command goes on from the newest"
            ) from error

    def _write(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        state = jax.device_get(state)
        record = _seal({"meta": meta, "types": _types(state), "sha256": _digests(state)})
        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(record)}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def _read_verified(self, path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
        record = self._read(path, meta=ocp.args.JsonRestore())["meta"]
        # Orbax notices no flipped bit, and one in a shape must not pass for another network.
        if not isinstance(record, dict) or record != _seal({k: v for k, v in record.items() if k != "seal"}):
            raise _DamageError("the record of its leaves does not match its sha256")
        there, here = record["types"], _types(like)
        for name in [name for name in here | there if here.get(name) != there.get(name)][:1]:
            raise ValueError(
                f"{path} holds another network: {name} is {there.get(name, 'missing')} there and "
                f"{here.get(name, 'missing')} here; choose another directory, or the configuration that is there"
            )
        empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        state = self._read(path, state=ocp.args.StandardRestore(empty))["state"]
        for name, digest in _digests(state).items():
            if digest != record["sha256"][name]:
                raise _DamageError(f"{name} does not match its sha256")
        return state, record["meta"]

    def _read(self, path: Path, **items: Any) -> Any:
        try:
            return self._manager.restore(int(path.name), args=ocp.args.Composite(**items))
        except Exception as error:  # whatever a damaged file makes of itself in the layers below
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _MACHINE:
                raise
            raise _DamageError(_first_line(error)) from error

    def _set_aside(self, damaged: dict[Path, _DamageError], outcome: str) -> None:
        for path, reason in damaged.items():
            if not self._owned:
                print(f"warning: {path} is damaged ({reason}), {outcome}", file=sys.stderr)
                continue
            names = (path.with_name(f"damaged-{path.name}-{n}") for n in itertools.count(1))
            aside = path.rename(next(name for name in names if not name.exists()))
            print(f"warning: {path} is damaged ({reason}); set aside as {aside.name}, {outcome}", file=sys.stderr)
        if damaged and self._owned:
            self._manager.close()
            self._manager = self._open()  # it forgets the steps that are gone


def _on_one_device(x: jax.Array) -> jax.Array:
    return x.addressable_data(0) if x.is_fully_replicated else x


def digest(state: Any) -> str:
    """sha256 of all leaves of state, names and values: two runs with the same digest are the same, bit for bit."""
    host = jax.tree.map(lambda x: np.asarray(_on_one_device(x)), state)
    return hashlib.sha256(json.dumps(_digests(host), sort_keys=True).encode()).hexdigest()


def _types(state: Any) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _named(state)}


def _digests(state: Any) -> dict[str, str]:
    return {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in _named(state)}


def _named(state: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(state)]


def _seal(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "seal": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Where one leaf cannot be read, the others' reads complain on stderr, a page each, that nobody waits for them."""
    before, log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            before(event)

    def heard(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    sys.unraisablehook = hook
    log.addFilter(heard)
    try:
        yield
        gc.collect()  # those that nobody waits for complain when they are collected
    finally:
        sys.unraisablehook = before
        log.removeFilter(heard)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
