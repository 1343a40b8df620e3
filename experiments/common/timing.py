"""Times calls fairly on a machine that others share: the calls alternate, and medians count."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from lowcost.train.mesh import data_mesh, over_batch

Step = Callable[[], Any]
"""A call that returns when its work is done."""


def jitted(function: Callable[..., Any], *arguments: Any) -> Step:
    """Returns a call of the compiled function that waits for its result."""
    program = jax.jit(function)
    return lambda: jax.block_until_ready(program(*arguments))


def value_and_gradients(apply: Callable[..., jax.Array], numbers: Any = (0, 1)) -> Callable[..., Any]:
    """Returns (weights, y, z) → ⟨apply(weights, y), z⟩ and its gradients by the arguments of these numbers."""
    return jax.value_and_grad(lambda weights, y, z: jnp.vdot(apply(weights, y), z), numbers)


def random_batch(seed: int, *shape: int) -> jax.Array:
    """Returns normal numbers, [B, *grid, C], with a part of the batch on each device."""
    mesh = data_mesh(shape[0])
    jax.set_mesh(mesh)
    return jax.device_put(jax.random.normal(jax.random.key(seed), shape), over_batch(mesh))


def interleave(steps: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each step, timed once per round, after one round to warm up.

    An untimed call precedes each timed one, so that the step finds memory and caches as another step leaves them, as in
    a run, and not as another program leaves them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            time.sleep(0.01)  # until the threads of the step before sleep
            step()
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}
