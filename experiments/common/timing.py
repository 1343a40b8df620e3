"""Times calls fairly on a machine that others share: the calls alternate, and medians count."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from lowcost.train.mesh import data_mesh, over_batch

Step = Callable[[], Any]
"""A call that starts work, and returns what `jax.block_until_ready` can wait for."""

ROUND_SECONDS = 0.02
"""The time of a step's calls in a round, on an accelerator."""
CALLS_MAX = 64
"""The largest number of these calls."""


def jitted(function: Callable[..., Any], *arguments: Any) -> Step:
    """Returns a call of the function, which is compiled in the background; for an accelerator several at a time."""
    program = _compilers().submit(jax.jit(function).lower(*arguments).compile)
    return lambda: program.result()(*arguments)


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else os.cpu_count(), "compiler")


def value_and_gradients(apply: Callable[..., jax.Array], numbers: Any = (0, 1)) -> Callable[..., Any]:
    """Returns (weights, y, z) → ⟨apply(weights, y), z⟩ and its gradients by the arguments of these numbers."""
    return jax.value_and_grad(lambda weights, y, z: jnp.vdot(apply(weights, y), z), numbers)


def random_batch(seed: int, *shape: int) -> jax.Array:
    """Returns normal numbers, [B, *grid, C], a part of the batch on each device, of which it makes JAX's mesh."""
    mesh = data_mesh(shape[0])
    jax.set_mesh(mesh)
    return jax.device_put(jax.random.normal(jax.random.key(seed), shape), over_batch(mesh))


def interleave(steps: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Returns the median seconds of a call of each step, timed once per round, after one round to warm up.

    An untimed call precedes the timed one, so that the step finds memory and caches as another step leaves them, as in
    a run, and not as another program leaves them. On an accelerator, many calls are started one after another, as in a
    run, and timed together: a single one would take as long to start and to report as to compute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    calls = dict.fromkeys(steps, 1)
    for i in range(rounds + 1):
        for name, step in steps.items():
            time.sleep(0.01)  # until the threads of the step before sleep
            jax.block_until_ready(step())
            started = time.perf_counter()
            for _ in range(calls[name]):
                result = step()
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - started) / calls[name])
            if not i and jax.default_backend() != "cpu":
                calls[name] = max(1, min(CALLS_MAX, round(ROUND_SECONDS / seconds[name][0])))
    return {name: median(times[1:]) for name, times in seconds.items()}
