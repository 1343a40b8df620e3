"""Lets many processes train as one: they share results, and compare values."""

import contextlib
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
        several = jax.distributed.is_initialized()
        platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
        remedy = "start all processes again" if several else "unset it, or install what the devices need"
        reason = first_line(error) if str(error) else "JAX knows none"
        raise OSError(f"JAX must find devices, got none with JAX_PLATFORMS={platforms} ({reason}); {remedy}") from error


def is_process_0() -> bool:
    """Returns whether this process is process 0, which writes files and prints."""
    return jax.process_index() == 0


PART_BYTES = 2**30
"""Bytes that one collective carries."""


def from_process_0(make: Callable[[], T]) -> T:
    """Returns make() of process 0 in all processes; an exception there is raised in all.

    The result travels as a pickle by JAX's collectives. Like them, it trusts the network between the processes.

    Args:
        make: called in process 0 alone; its result or exception must be picklable.

    Raises:
        Exception: as make raised it.
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
        parts, rest = multihost_utils.broadcast_one_to_all(np.array(divmod(len(payload), PART_BYTES), np.int32))
        if not is_process_0():
            payload = np.zeros(int(parts) * PART_BYTES + int(rest), np.uint8)
        starts = range(0, len(payload), PART_BYTES)
        received = [multihost_utils.broadcast_one_to_all(payload[i : i + PART_BYTES]) for i in starts]
    fine, value = pickle.loads(np.concatenate(received).tobytes())
    if not fine:
        raise value
    return value


def process_max(number: int) -> int:
    """Returns the maximum of a number over all processes; each must call it at the same point."""
    if jax.process_count() == 1:
        return number
    with _all_alive():
        return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def _all_alive() -> Iterator[None]:
    """Replaces the errors of a failed collective, which are of several types, by ConnectionError."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        expected = f"all processes of the run must be alive, got {first_line(error)}"
        raise ConnectionError(f"{expected}; start all of them again to resume") from error


def unequal_devices() -> bool:
    """Returns whether processes have different numbers of devices, with which collectives would hang."""
    return len(set(Counter(device.process_index for device in devices()).values())) > 1


def differing(values: dict[str, Any]) -> list[str]:
    """Returns the names of values (JSON) that differ between processes, or that not all of them have.

    Each process must call it at the same point.
    """
    own = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    if jax.process_count() == 1:
        return []
    of_process_0 = from_process_0(lambda: own)
    unequal = {name for name in own | of_process_0 if own.get(name) != of_process_0.get(name)}
    named = [name in unequal for name in of_process_0]
    with _all_alive():
        everywhere = multihost_utils.process_allgather(np.array([*named, bool(unequal - of_process_0.keys())]))
    *named, others = everywhere.any(0)
    names = [name for name, differs in zip(of_process_0, named, strict=True) if differs]
    return [*names, "values that process 0 lacks"] if others else names
