"""The fastest method of every operator on this device, over a grid of sizes: what method="auto" reads.

Writes one line per operator and size: the seconds that value and gradients take by each method. `lowcost` has such a
table for CPUs; for another device, or a better one for this, set the environment variable LOWCOST_METHODS to the file.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.huge_pages import use_huge_pages
from experiments.timing import Step, interleave


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where to write it."""

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Points per side of two-dimensional grids; in one and three dimensions two, without the most channels."""
    channels: tuple[int, ...] = (3, 32, 128)
    """Channels in (and out)."""
    kernel_sizes: tuple[int, ...] = (3, 7)
    """Points per side of the stencils."""
    features: int = 2**20
    """Numbers in a batch: so many images that they fill it."""
    rounds: int = 3
    """Of one call of each method, each after one to warm up; the median counts."""
    out: Path = Path("methods.json")
    """The table."""


def main(config: Config) -> None:
    """Measure all points, and write the table as it grows."""
    from lowcost.train.mesh import use_every_core

    use_every_core(64)
    rows = []
    for point in points(config):
        row = measure(**point, features=config.features, rounds=config.rounds)
        rows.append(row)
        shown = "  ".join(f"{way} {1e3 * seconds:.1f} ms" for way, seconds in row["seconds"].items())
        print(
            f"{row['operator']:10} {row['dims']}-D n={row['n']} m={row['m']} c={row['channels']}: {shown}", flush=True
        )
        config.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
            for operator in ("real", "depthwise", "circulant", "coupled"):
                sizes = config.kernel_sizes if operator in ("depthwise", "coupled") and dims == 2 else (3,)
                for m in sizes:
                    if m <= n:
                        yield {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels}


def measure(operator: str, dims: int, n: int, m: int, channels: int, *, features: int, rounds: int) -> dict:
    """The row of one point: the median seconds of value and gradients, by method."""
    import jax
    import jax.numpy as jnp

    from lowcost.methods import WAYS
    from lowcost.train.mesh import data_mesh, over_batch

    devices = jax.device_count()
    batch = max(devices, features // (n**dims * channels) // devices * devices)
    mesh = data_mesh(batch)
    jax.set_mesh(mesh)
    keys = jax.random.split(jax.random.key(0), 3)
    window = (m,) * dims
    stencil = jax.random.normal(
        keys[0], (*window, channels, channels) if operator == "coupled" else (*window, channels)
    )
    y, z = (
        jax.device_put(jax.random.normal(key, (batch, *(n,) * dims, channels)), over_batch(mesh)) for key in keys[1:]
    )

    def program(way: str) -> Callable:
        apply = _operator(operator, way)
        return jax.jit(lambda stencil, y, z: jax.value_and_grad(lambda *a: jnp.vdot(apply(*a), z), (0, 1))(stencil, y))

    programs = {way: program(way) for way in WAYS[operator]}
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
        "real": lambda stencil, y, method: lowcost.depthwise_resolvent(stencil, y, 1.0, method=method),
        "depthwise": lowcost.depthwise,
        "circulant": lowcost.circulant_diffusion,
        "coupled": lowcost.fully_coupled,
    }
    return lambda stencil, y: apply[operator](stencil, y, method=way)


if __name__ == "__main__":
    import tyro

    use_huge_pages()
    try:
        main(tyro.cli(Config, prog="python -m experiments.autotune", description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
