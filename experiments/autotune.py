"""Measures the fastest method of every operator on this device, over a grid of sizes, for method="auto".

Writes one line per operator and size: the seconds that value and gradients take by each method. `lowcost` contains such
a table for CPUs, and tables for accelerators that hold estimates of XLA's compilers (`--compile-for`). For another
device, or a better table for yours, set the environment variable LOWCOST_METHODS to the file.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from experiments.common import entry, files, timing, topologies, tuning
from experiments.common.config import check_counts
from experiments.common.results import Row
from lowcost.methods import METHODS_OF, Point
from lowcost.train.mesh import replicated, use_every_core

OPERATORS = ("diffusion", "depthwise", "circulant", "coupled", "linear_mix")
GRIDS = ((2, (8, 16, 32, 64, 128)), (1, (64, 1024)), (3, (8, 32)))
"""Dimensions, and points per axis."""
CHANNELS = (3, 32, 128)
"""Channels in and out; the last only in two dimensions.

Fewer than 32 are those of an image, whose fully coupled convolution is the opening layer of a network: 32 channels out,
and the gradient with respect to the stencil alone.
"""
ACCELERATOR_CHANNELS = (32, 64, 128)
"""Of tables for accelerators. A run on a CPU measures the sizes between those of the table."""
KERNEL_SIZES = (3, 5, 7)
"""Points per side of the stencils in two dimensions; elsewhere, and for circulant operators, only the first."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How to measure, and where to write the table."""

    features: int = tuning.FEATURES
    """Numbers in a batch: as many images as hold this many. On an accelerator four times as many, 8 to 128 images."""
    rounds: int = 3
    """Rounds after one to warm up; each times every method once, and the median counts."""
    short: bool = False
    """Measure the smallest grid alone, with the smallest stencil."""
    compile_for: str | None = None
    """A chip that is not here, e.g. v5e:2x2 or h100:1x1x1: take the estimates of its compiler, for fewer sizes."""
    out: Path = Path("methods.json")
    """The table, as JSON lines."""


def main(config: Config) -> None:
    """Measures all points, and writes the table after each."""
    check_counts(config, "features", "rounds")
    use_every_core(64)
    on_accelerator = config.compile_for is None and jax.default_backend() != "cpu"
    rows: list[Row] = []
    for row in precompiled_rows(config) if on_accelerator else sequential_rows(config):
        rows.append(row)
        times = "  ".join(f"{method} {1e3 * seconds:.2f} ms" for method, seconds in row["seconds"].items())
        print("{operator:9} {dims}-D n={n} m={m} c={channels}: {times}".format(**row, times=times), flush=True)
        files.write_rows(config.out, rows)


def sequential_rows(config: Config) -> Iterator[Row]:
    """Yields the rows of a CPU, or estimates for a chip that is not here, compiled one after another."""
    hopeless = set()
    for point in points(config.short, config.compile_for is not None):
        kind = tuple(value for key, value in point.items() if key != "n")
        methods = [method for method in METHODS_OF[point["operator"]] if (kind, method) not in hopeless]
        if config.compile_for:
            row = estimate(point, methods, config.features, config.compile_for)
        else:
            row = _row(point, *tuning.measure(_subject(point), methods, config.features, config.rounds))
        yield row
        # Only the matrix product's cost per point grows with the grid, so it stays far behind on larger ones. Rows
        # without an FFT keep it for the resolvents, which have no direct method.
        far = row["seconds"].get("matmul", 0) > 4 * min(row["seconds"].values(), default=0)
        if far and ("fft" in row["seconds"] or point["operator"] == "coupled"):
            hopeless.add((kind, "matmul"))


def precompiled_rows(config: Config) -> Iterator[Row]:
    """Yields the rows of the accelerator here; all programs are compiled, side by side, before any is timed."""
    prepared, devices = [], len(jax.local_devices())
    for point in points(config.short, coarse=True):
        batch = -(-_batch(_subject(point), config.features) // devices) * devices
        prepared.append((point, batch, tuning.prepared(_subject(point), METHODS_OF[point["operator"]], batch)))
    ready = [(point, batch, dict(filter(_works, steps.items()))) for point, batch, steps in prepared]
    for point, batch, steps in ready:
        yield _row(point, batch, tuning.timed(steps, config.rounds))


def _works(named_step: tuple[str, timing.Step]) -> bool:
    """Returns whether the step of a method can be compiled, and its arrays fit into the memory."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.block_until_ready(named_step[1]())
        return True
    return False


def points(short: bool = False, coarse: bool = False) -> Iterator[Row]:
    """Yields operators and sizes: the smallest grid if short; fewer, of two dimensions, if coarse (slow compilers)."""
    for dims, sizes in GRIDS[:1] if short or coarse else GRIDS:
        for n in sizes[:1] if short else sizes:
            for channels in ACCELERATOR_CHANNELS if coarse else CHANNELS if dims == 2 else CHANNELS[:2]:
                for operator in OPERATORS:
                    single = short or dims != 2 or operator == "circulant"
                    for m in KERNEL_SIZES[:1] if single else KERNEL_SIZES[:: 2 if coarse else 1]:
                        yield {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels}


def estimate(point: Row, methods: Sequence[str], features: int, topology: str) -> Row:
    """Returns the row of one point: the seconds that the compiler of an absent chip estimates, by method.

    XLA makes convolutions of the FFTs on TPUs, which take minutes to compile and are slow. There the FFT is compiled
    for the largest grid alone.
    """
    chip, mesh, subject = topology.partition(":")[0], topologies.mesh(topology, 1), _subject(point)
    tpu, largest = chip in topologies.CLOCKS, point["n"] == GRIDS[0][1][-1]
    methods = [method for method in methods if method != "fft" or largest or not tpu]
    batch, seconds = _batch(subject, features), {}
    for method in methods:
        program = jax.jit(tuning.value_and_gradients(subject, method), in_shardings=replicated(mesh))
        lowered = program.lower(*tuning.shapes(subject, batch))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # XLA compiles some small products only on the device
            row = topologies.report(topologies.compiled(lowered, chip), chip)
            seconds[method] = round(row["milliseconds"] / 1e3, 9)
    return {**point, "batch": batch, "seconds": seconds, "origin": f"estimated by XLA for {chip}"}


def _batch(subject: Point, features: int) -> int:
    """Returns the number of images for an accelerator."""
    return max(8, min(128, tuning.images(subject, 4 * features)))


def _row(point: Row, batch: int, seconds: tuning.Seconds) -> Row:
    """Returns the row of one point: the median seconds of value and gradients, by method."""
    about = f"measured on {jax.devices()[0].device_kind} with jax {jax.__version__}"
    return {
        **point,
        "batch": batch,
        "seconds": {method: round(time, 9) for method, time in seconds.items()},
        "origin": about,
    }


def _subject(point: Row) -> Point:
    grid, window = ((point[name],) * point["dims"] for name in ("n", "m"))
    return Point(point["operator"], grid, window, point["channels"])


if __name__ == "__main__":
    entry.run(main, Config, long=True)
