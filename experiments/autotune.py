"""Measures the fastest method of every operator on this device, over a grid of sizes, for method="auto".

Writes one line per operator and size: the seconds that value and gradients take by each method. `lowcost` contains such
a table for CPUs. For another device, or a better table for yours, set the environment variable LOWCOST_METHODS to the
file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax

import lowcost
from experiments.common import entry
from experiments.common.files import write_rows
from experiments.common.tables import Row
from experiments.common.timing import gradients, interleave, random_batch
from lowcost.methods import WAYS
from lowcost.train.mesh import use_every_core
from lowcost.train.processes import devices

OPERATORS: dict[str, Callable[..., jax.Array]] = {
    "diffusion": lowcost.depthwise_diffusion,
    "depthwise": lowcost.depthwise,
    "circulant": lowcost.circulant_diffusion,
    "coupled": lowcost.fully_coupled,
}
GRIDS = ((2, (8, 16, 32, 64, 128)), (1, (64, 1024)), (3, (8, 32)))
"""Dimensions, and points per axis."""
CHANNELS = (3, 32, 128)
"""Channels in and out; the last only in two dimensions.

Fewer than 32 are those of an image, whose fully coupled convolution is the opening layer of a network: 32 channels out,
and the gradient with respect to the stencil alone.
"""
KERNEL_SIZES = (3, 5, 7)
"""Points per side of the stencils in two dimensions; elsewhere, and for circulant operators, only the first."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How to measure, and where to write the table."""

    features: int = 2**20
    """Numbers in a batch: as many images as hold this many."""
    rounds: int = 3
    """Rounds after one to warm up; each times every method once, and the median counts."""
    short: bool = False
    """Measure the smallest grid alone, with the smallest stencil."""
    out: Path = Path("methods.json")
    """The table, as JSON lines."""


def main(config: Config) -> None:
    """Measures all points, and writes the table after each."""
    use_every_core(64)
    rows: list[Row] = []
    hopeless = set()
    for point in points(config.short):
        kind = tuple(value for key, value in point.items() if key != "n")
        ways = [way for way in WAYS[point["operator"]] if way != "matmul" or kind not in hopeless]
        row = measure(point, ways, config.features, config.rounds)
        rows.append(row)
        # Only the matrix product's cost per point grows with the grid, so it stays far behind on larger ones.
        if row["seconds"].get("matmul", 0) > 4 * min(row["seconds"].values()):
            hopeless.add(kind)
        times = "  ".join(f"{way} {1e3 * seconds:.1f} ms" for way, seconds in row["seconds"].items())
        print("{operator:9} {dims}-D n={n} m={m} c={channels}: {times}".format(**row, times=times), flush=True)
        write_rows(config.out, rows)


def points(short: bool = False) -> Iterator[Row]:
    """Yields operators and sizes; stencils of several sizes only where the size matters."""
    for dims, sizes in GRIDS[:1] if short else GRIDS:
        for n in sizes[:1] if short else sizes:
            for channels in CHANNELS if dims == 2 else CHANNELS[:2]:
                for operator in OPERATORS:
                    single = short or dims != 2 or operator == "circulant"
                    for m in KERNEL_SIZES[:1] if single else KERNEL_SIZES:
                        yield {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels}


def measure(point: Row, ways: Sequence[str], features: int, rounds: int) -> Row:
    """Returns the row of one point: the median seconds of value and gradients, by method.

    Args:
        point: operator, dims, n, m and channels.
        ways: the methods to measure; those that take three times as long as the fastest are measured only once.
        features: numbers in a batch.
        rounds: timed calls of each method.
    """
    operator, channels = point["operator"], point["channels"]
    grid, window = ((point[name],) * point["dims"] for name in ("n", "m"))
    images = features // (point["n"] ** point["dims"] * channels)
    batch = max(1, images // len(devices())) * len(devices())
    opening = operator == "coupled" and channels < 32
    out = 32 if opening else channels
    shape = (*window, channels, out) if operator == "coupled" else (*window, channels)
    stencil = jax.random.normal(jax.random.key(0), shape)
    y, z = random_batch(1, batch, *grid, channels), random_batch(2, batch, *grid, out)
    arguments = (stencil, y, z, 0 if opening else (0, 1))
    steps = {way: gradients(partial(OPERATORS[operator], method=way), *arguments) for way in ways}
    seconds = interleave(steps, 1)
    close = {way: step for way, step in steps.items() if seconds[way] < 3 * min(seconds.values())}
    seconds |= interleave(close, rounds)
    return {**point, "batch": batch, "seconds": {way: round(time, 6) for way, time in seconds.items()}}


if __name__ == "__main__":
    entry.run(main, Config, long=True)
