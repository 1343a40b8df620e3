"""Lets many processes train as one: they share results, agree, and compare what each of them has."""

import contextlib
import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lowcost.terminal import first_line

T = TypeVar("T")


def devices() -> list[jax.Device]:
    """Returns all devices of all processes.

    Raises:
        OSError: JAX has no device to run on.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked, remedy = jax.config.values["jax_platforms"] or "", "unset it, or install what the devices need"
        if jax.distributed.is_initialized():
            remedy = "start all processes again"
        reason = first_line(error) if str(error) else "JAX knows none"
        raise OSError(f"JAX must find devices, got none with JAX_PLATFORMS={asked} ({reason}); {remedy}") from error


def is_process_0() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def from_process_0(make: Callable[[], T]) -> T:
    """make() of process 0, in all of them; an exception there is raised in all.

    The pickle is of process 0 of this run and comes by JAX's collectives: like them, it trusts the network between the
    processes of a run, and reads no file.

    Args:
        make: called in process 0 alone; its result, or exception, must be picklable.

    Returns:
        Its result, in all processes.

    Raises:
        Exception: what make raised.
        ConnectionError: a process of the run has ended.
    """
    if jax.process_count() == 1:
        return make()
    outcome: tuple[bool, T | Exception] | None = None
    if is_process_0():
        try:
            outcome = True, make()
        except Exception as error:
            outcome = False, error
    payload = np.frombuffer(pickle.dumps(outcome), np.uint8)
    with _all_alive():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
        payload = np.resize(payload, size) if is_process_0() else np.zeros(size, np.uint8)
        payload = np.asarray(multihost_utils.broadcast_one_to_all(payload))
    fine, value = pickle.loads(payload.tobytes())
    if not fine:
        raise value
    return value


def agree(number: int) -> int:
    """max number over all processes, in all of them; each must call it at the same point."""
    if jax.process_count() == 1:
        return number
    with _all_alive():
        return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def _all_alive() -> Iterator[None]:
    """Raises ConnectionError in place of JAX's errors, which are of many types, where a collective fails."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        expected = f"all processes of the run must be alive, got {first_line(error)}"
        raise ConnectionError(f"{expected}; start all of them again to resume") from error


def unequal_devices() -> bool:
    """Returns whether processes have different numbers of devices, so that they can neither train nor agree."""
    return len(set(Counter(device.process_index for device in devices()).values())) > 1


def differing(values: dict[str, Any]) -> list[str]:
    """Returns the names of those values (JSON) that are not the same in all processes, in each of them.

    Each must call it at the same point, with the same names.
    """
    if jax.process_count() == 1:
        return []
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:4] for value in values.values()]
    with _all_alive():
        everywhere = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint32))
    return [name for name, column in zip(values, everywhere.T, strict=True) if len(set(column.tolist())) > 1]
