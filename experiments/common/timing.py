"""Fair timing on a machine that others share: what is compared alternates, and medians count."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

Step = Callable[[], Any]
"""A call that returns when its work is done."""


def interleave(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median seconds of each, one timed call of each a round, after one round to warm up.

    Before each timed call goes one that is not: a step finds the memory and the caches that a step before it leaves, as
    in a run, and not what another program has left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            time.sleep(0.01)  # until the threads of the one before have gone to sleep
            step()
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}
