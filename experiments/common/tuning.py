"""Measures methods of operators on this machine, and chooses those of a run on a CPU."""

import contextlib
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lowcost
from experiments.common import timing
from lowcost import disk
from lowcost.methods import METHODS_OF, Point, known_seconds
from lowcost.train.mesh import mesh_over, over_batch, replicated

OPERATORS: dict[str, Callable[..., jax.Array]] = {
    "real": partial(lowcost.depthwise_resolvent, h=1.0),
    "mirrored": partial(lowcost.depthwise_resolvent, h=1.0, boundary="symmetric"),
    "complex": lowcost.depthwise,
    "depthwise": lowcost.depthwise,
    "diffusion": lowcost.depthwise_diffusion,
    "circulant": lowcost.circulant_diffusion,
    "circulant_resolvent": partial(lowcost.circulant_resolvent, h=1.0),
    "coupled": lowcost.fully_coupled,
    "linear_mix": lowcost.linear_mix,
}
"""What stands for each operator of `lowcost.methods.METHODS_OF`."""
FEATURES = 2**20
"""Numbers in a batch."""
CLOSE = 1.5
"""A run measures the methods that take at most this many times as long as the fastest, according to the table."""
_OPENING = 32
"""Fewer channels are those of an image: 32 channels out, and the gradient with respect to the stencil alone."""

Seconds = dict[str, float]
"""Method → seconds."""


def chosen(points: Iterable[Point]) -> dict[str, str]:
    """Returns the fastest method of each point on this CPU, measured now or by an earlier run.

    The times are stored beside the compiled programs. Nothing is measured where LOWCOST_METHODS or LOWCOST_CHIP names
    a table, or with LOWCOST_MEASURE=0.
    """
    methods: dict[str, str] = {}
    unsure: dict[str, tuple[Point, list[str]]] = {}
    for point in sorted(points):
        seconds = known_seconds(point, "cpu")
        methods[str(point)] = min(seconds, key=seconds.__getitem__)
        close = [method for method, time in seconds.items() if time <= CLOSE * min(seconds.values())]
        if len(close) > 1:
            unsure[str(point)] = point, close
    named = os.environ.get("LOWCOST_METHODS") or os.environ.get("LOWCOST_CHIP")
    if named or os.environ.get("LOWCOST_MEASURE") == "0":
        return methods
    machine, folder = _machine(), jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    path = Path(folder or os.devnull, f"methods-{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json")
    measured = _read(path)
    missing = {name: of for name, of in unsure.items() if not measured.get(name, {}).keys() >= {*of[1]}}
    if missing:
        print("measuring operators on this CPU, once for this network; LOWCOST_MEASURE=0 skips it", flush=True)
        new = {name: measure(point, close)[1] for name, (point, close) in missing.items()}
        content = {"machine": machine, "seconds": _read(path) | new}  # another run may have added some meanwhile
        with contextlib.suppress(OSError):  # nothing is kept here, and the next run measures again
            disk.replace(path, json.dumps(content, indent=1).encode())
        measured |= new
    return methods | {name: min(close, key=measured[name].__getitem__) for name, (_, close) in unsure.items()}


def _read(path: Path) -> dict[str, Seconds]:
    """Returns the seconds of each point by method; none if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        seconds = json.loads(path.read_bytes())["seconds"].items()
        return {
            point: {method: float(t) for method, t in times.items() if 0 < t < math.inf} for point, times in seconds
        }
    return {}


def _machine() -> str:
    """Returns what the times depend on, besides the point."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    devices = f"{len(jax.local_devices())} devices of {os.cpu_count()} cores"
    return f"{(*names, platform.processor())[0]}, {devices}, jax {jax.__version__}, lowcost {lowcost.__version__}"


def measure(point: Point, methods: Sequence[str], features: int = FEATURES, rounds: int = 3) -> tuple[int, Seconds]:
    """Returns the number of images, and the median seconds of value and gradients by method, on this process's devices.

    Args:
        point: operator and sizes.
        methods: the methods to measure; those that take three times as long as the fastest are measured only once.
        features: numbers in a batch.
        rounds: timed calls of each method, after one to warm up.
    """
    devices = len(jax.local_devices())
    batch = max(1, images(point, features) // devices) * devices
    return batch, timed(prepared(point, methods, batch), rounds)


def prepared(point: Point, methods: Sequence[str], batch: int) -> dict[str, timing.Step]:
    """Returns the steps that `timed` measures, which are compiled in the background.

    Args:
        point, methods: as in `measure`.
        batch: number of images, divisible by that of the devices.
    """
    rng, mesh = np.random.default_rng(0), mesh_over(jax.local_devices())
    arrays = jax.tree.map(lambda x: rng.standard_normal(x.shape, x.dtype), shapes(point, batch))
    with jax.set_mesh(mesh):
        arrays = jax.device_put(arrays, (replicated(mesh), over_batch(mesh), over_batch(mesh)))
        return {method: timing.jitted(value_and_gradients(point, method), *arrays) for method in methods}


def timed(steps: dict[str, timing.Step], rounds: int) -> Seconds:
    """Returns the median seconds of each step; see `measure`."""
    seconds = timing.interleave(steps, 1)
    close = {method: step for method, step in steps.items() if seconds[method] < 3 * min(seconds.values())}
    return seconds | timing.interleave(close, rounds)


def value_and_gradients(point: Point, method: str) -> Callable[..., Any]:
    """Returns the function of weights, y and z to time: of an opening layer the gradient of the stencil alone."""

    def apply(weights: tuple[jax.Array, ...], y: jax.Array) -> jax.Array:
        return OPERATORS[point.operator](*weights, y, method=method)

    return timing.value_and_gradients(apply, (0, 1) if _channels_out(point) == point.channels else 0)


def images(point: Point, features: int) -> int:
    """Returns the number of images that hold the given number of features, before or after the operator."""
    return features // (math.prod(point.grid) * _channels_out(point))


def shapes(point: Point, batch: int) -> tuple[Any, ...]:
    """Returns the shapes and dtypes of the weights, of y and of z."""
    operator, grid, window, channels = point
    if "direct" not in METHODS_OF[operator]:  # a filter, whose stencil is not known
        window = tuple(min(3, points) for points in grid)
    out = _channels_out(point)
    weights = [(*window, channels, *((out,) if operator == "coupled" else ()))]
    weights += [(channels, channels)] if operator == "linear_mix" else []
    array = partial(jax.ShapeDtypeStruct, dtype=np.float32)
    return tuple(map(array, weights)), array((batch, *grid, channels)), array((batch, *grid, out))


def _channels_out(point: Point) -> int:
    return max(_OPENING, point.channels) if point.operator == "coupled" else point.channels
