"""The fastest method of every operator on this device, over a grid of sizes: what method="auto" reads.

Writes one line per operator and size: the seconds that value and gradients take by each method. `lowcost` has such a
table for CPUs; for another device, or a better one for this, set the environment variable LOWCOST_METHODS to the file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.common import entry
from experiments.common.files import write_rows
from experiments.common.timing import Step, interleave


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where to write it."""

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Points per side of two-dimensional grids; in one and three dimensions two, without the most channels."""
    channels: tuple[int, ...] = (3, 32, 128)
    """Channels in and out. Fewer than 32 are taken for an image's, whose fully coupled convolution opens a network: it
    has 32 out, and its gradient is that of the stencil alone."""
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    """Points per side of the stencils."""
    features: int = 2**20
    """Numbers in a batch: so many images that they fill it."""
    rounds: int = 3
    """Of one call of each method, each after one to warm up; the median counts."""
    out: Path = Path("methods.json")
    """The table."""


def main(config: Config) -> None:
    """Measure all points, and write the table as it grows."""
    from lowcost.methods import WAYS
    from lowcost.train.mesh import use_every_core

    use_every_core(64)
    rows = []
    hopeless = set()
    for point in points(config):
        kind = tuple(value for key, value in point.items() if key != "n")
        ways = [way for way in WAYS[point["operator"]] if way != "matmul" or kind not in hopeless]
        row = measure(**point, ways=ways, features=config.features, rounds=config.rounds)
        rows.append(row)
        # Only the matrix product's cost per point grows with the grid: what was far behind stays so.
        if row["seconds"].get("matmul", 0) > 4 * min(row["seconds"].values()):
            hopeless.add(kind)
        shown = "  ".join(f"{way} {1e3 * seconds:.1f} ms" for way, seconds in row["seconds"].items())
        print(f"{row['operator']:9} {row['dims']}-D n={row['n']} m={row['m']} c={row['channels']}: {shown}", flush=True)
        write_rows(config.out, rows)


def points(config: Config) -> Iterator[dict]:
    """Operators and sizes; without a stencil's size where it does not matter."""
    grids = [(2, n) for n in config.sizes]
    grids += [
        (1, 8 * config.sizes[0]),
        (1, 8 * config.sizes[-1]),
        (3, config.sizes[0]),
        (3, config.sizes[len(config.sizes) // 2]),
    ]
    for dims, n in dict.fromkeys(grids):
        for channels in config.channels if dims == 2 else config.channels[:2]:
            for operator in ("diffusion", "depthwise", "circulant", "coupled"):
                sizes = config.kernel_sizes if operator != "circulant" and dims == 2 else (3,)
                for m in sizes:
                    if m <= n:
                        yield {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels}


def measure(
    operator: str, dims: int, n: int, m: int, channels: int, *, ways: Sequence[str], features: int, rounds: int
) -> dict:
    """The row of one point: the median seconds of value and gradients, by method."""
    import jax
    import jax.numpy as jnp

    from lowcost.train import processes
    from lowcost.train.mesh import data_mesh, over_batch

    devices = len(processes.devices())
    batch = max(devices, features // (n**dims * channels) // devices * devices)
    mesh = data_mesh(batch)
    jax.set_mesh(mesh)
    keys = jax.random.split(jax.random.key(0), 3)
    window = (m,) * dims
    opening = operator == "coupled" and channels < 32
    out = 32 if opening else channels
    stencil = jax.random.normal(keys[0], (*window, channels, out) if operator == "coupled" else (*window, channels))
    y, z = (
        jax.device_put(jax.random.normal(key, (batch, *(n,) * dims, c)), over_batch(mesh))
        for key, c in zip(keys[1:], (channels, out), strict=True)
    )

    def program(way: str) -> Callable:
        apply = _operator(operator, way)
        gradient = jax.value_and_grad(lambda stencil, y, z: jnp.vdot(apply(stencil, y), z), 0 if opening else (0, 1))
        return jax.jit(gradient)

    programs = {way: program(way) for way in ways}
    steps = {way: _step(run, stencil, y, z) for way, run in programs.items()}
    seconds = interleave(steps, 1)
    close = {way: step for way, step in steps.items() if seconds[way] < 3 * min(seconds.values())}
    seconds |= interleave(close, rounds)
    medians = {way: round(time, 6) for way, time in seconds.items()}
    return {
        "operator": operator,
        "dims": dims,
        "n": n,
        "m": m,
        "channels": channels,
        "batch": batch,
        "seconds": medians,
    }


def _step(run: Callable, *arguments: Any) -> Step:
    import jax

    return lambda: jax.block_until_ready(run(*arguments))


def _operator(operator: str, way: str) -> Callable:
    import lowcost

    apply: dict[str, Callable] = {
        "diffusion": lowcost.depthwise_diffusion,
        "depthwise": lowcost.depthwise,
        "circulant": lowcost.circulant_diffusion,
        "coupled": lowcost.fully_coupled,
    }
    return lambda stencil, y: apply[operator](stencil, y, method=way)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
