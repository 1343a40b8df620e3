"""Measures images per second of training and inference, compared with PyTorch networks of the same mathematics.

Our steps and PyTorch's alternate in one process, so that a machine that slows down slows both; medians count.
PyTorch is not a dependency: `pip install '.[benchmark]'`.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import entry, timing
from experiments.common.config import Architecture, check_counts, values
from experiments.common.results import Results, Row, page, provenance
from lowcost import extras, nn
from lowcost.batching import without_loops
from lowcost.scaling import to_unit_range
from lowcost.train.mesh import data_mesh, replicated, shard_batch, use_every_core
from lowcost.train.processes import devices
from lowcost.train.state import create_state
from lowcost.train.step import make_train_step

PERIODIC = ("implicit_rd", "circulant_rd", "implicit_circulant_rd")
"""Their steps are periodic in PyTorch too; the others are also timed with zero padding, which is cheaper."""
PADDINGS: dict[str, Any] = {"pytorch": "circular", "zero_padded": "zeros"}
"""The networks of PyTorch, by their names in the rows."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time, and where to write the figures."""

    architectures: tuple[Architecture, ...] = get_args(Architecture)
    """The networks."""
    width: nn.Width = "A"
    """Channels of the blocks. A: 32, 64, 128. B: 48, 96, 192. C: 32, 64, 128, 256."""
    batch_size: int = 100
    """Images per step."""
    size: int = 32
    """Pixels per side of the images."""
    rounds: int = 7
    """Rounds after one to warm up; each times every network once."""
    compile_pytorch: bool = True
    """Also try torch.compile, which takes minutes."""
    out: Path = Path("runs/results/throughput")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Times all networks, writes both files after each, prints the tables."""
    check_counts(config, "batch_size", "size", "rounds")
    results = Results(config, markdown)
    for architecture in config.architectures:
        # In a process of its own: the memory of one network does not slow the next.
        rows = entry.in_a_process(measure, config, architecture)
        results.add(rows)
        for row in rows:
            print("{architecture} {mode}: ratio {ratio:.2f}".format(**row), flush=True)
    results.show()


def measure(config: Config, architecture: Architecture) -> list[Row]:
    """Returns the rows of an architecture, for training and inference.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: the PyTorch network's logits are not ours.
    """
    with extras.needs_extra("benchmark"):
        import torch

        from experiments.common.torch_networks import Theirs

    use_every_core(config.batch_size)
    peaks = measure_peaks()
    ours = Ours(architecture, config)
    theirs = Theirs(architecture, ours, "cuda" if jax.default_backend() == "gpu" else "cpu")
    check_logits(architecture, ours.logits(4), theirs.logits(4))
    rows = []
    for mode in ("train", "inference"):
        forms, steps = {}, {"ours": ours.steps[mode]}
        for name, padding in PADDINGS.items():
            if name == "pytorch" or architecture not in PERIODIC:
                forms[f"{name}_form"], steps[name] = theirs.fastest(mode, padding, config.compile_pytorch)
        seconds = timing.interleave(steps, config.rounds)
        ratios = {name: time / seconds["ours"] for name, time in seconds.items()}
        gflop, gbytes = ours.counts(mode)
        row = {
            "architecture": architecture,
            "mode": mode,
            **values(config, "width", "batch_size", "size", "rounds", "compile_pytorch"),
            **{f"{name}_images_per_second": config.batch_size / time for name, time in seconds.items()},
            "ratio": ratios["pytorch"],
            "zero_padded_ratio": ratios.get("zero_padded"),
            **forms,
            "compile_seconds": ours.compile_seconds[mode],
            "gflop": gflop,
            "gbytes": gbytes,
            "gemm_share": gflop / seconds["ours"] / peaks["gemm_gflops"],
            "copy_share": gbytes / seconds["ours"] / peaks["copy_gbytes_per_second"],
            **peaks,
            "memory_gib": ours.memory(mode),
            **provenance(),
            "pytorch_version": torch.__version__,
        }
        rows.append(row)
    return rows


def check_logits(architecture: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raises ValueError unless the logits agree to 1e-4 of the largest one."""
    difference = float(np.abs(theirs - ours).max())
    if difference > 1e-4 * max(1.0, float(np.abs(theirs).max())):
        problem = f"the PyTorch network of {architecture} must have our logits, got a difference of {difference:.1e}"
        raise ValueError(f"{problem}; correct experiments/common/torch_networks.py")


class Ours:
    """The network of this library, compiled and ready to be timed.

    Attributes:
        variables: weights and statistics, as NumPy arrays.
        images, labels: the batch, uint8 [B, H, W, 3] and int32 [B].
        compile_seconds: of each mode, "train" and "inference".
        steps: a call of each mode.
    """

    def __init__(self, architecture: Architecture, config: Config, kernel_size: int = 3):
        mesh = data_mesh(config.batch_size)
        jax.set_mesh(mesh)
        rng = np.random.default_rng(0)
        shape = (config.size, config.size, 3)
        self.images = rng.integers(0, 256, (config.batch_size, *shape), np.uint8)
        self.labels = rng.integers(0, 10, config.batch_size).astype(np.int32)
        batch = shard_batch(mesh, self.images, self.labels, np.arange(config.batch_size, dtype=np.int32))
        self.net, optimizer = nn.network(architecture, config.width, 10, kernel_size=kernel_size), optax.adam(1e-3)
        create = partial(create_state, self.net, optimizer, jax.random.key(0), shape)
        initial = jax.jit(create, out_shardings=replicated(mesh))
        state, self.state = initial(), initial()  # training overwrites the latter
        self.variables = jax.device_get(state.variables)
        train = jax.jit(make_train_step(self.net, optimizer, lambda images, draw: images, 500), donate_argnums=0)
        infer = jax.jit(lambda state, images: nn.infer(self.net, state.variables, to_unit_range(images)))
        self.calls: dict[str, Any] = {"train": (train, (state, *batch)), "inference": (infer, (state, batch[0]))}
        self.programs: dict[str, Any] = {}
        self.compile_seconds: dict[str, float] = {}
        for mode, (function, arguments) in self.calls.items():
            started = time.perf_counter()
            self.programs[mode] = function.lower(*arguments).compile()
            self.compile_seconds[mode] = time.perf_counter() - started

        def train_once() -> Any:
            self.state = self.programs["train"](self.state, *batch)
            return self.state

        inference = partial(self.programs["inference"], state, batch[0])
        self.steps: dict[str, timing.Step] = {"train": train_once, "inference": inference}

    def logits(self, number: int) -> np.ndarray:
        """Returns the logits of the first `number` images, with products in full precision."""
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.net.apply(self.variables, self.images[:number] / np.float32(255)))

    def memory(self, mode: str) -> float:
        """Returns the GiB of arguments, results and intermediate values, on all devices."""
        size = self.programs[mode].memory_analysis()
        return jax.device_count() * (size.argument_size_in_bytes + size.temp_size_in_bytes) / 2**30

    def counts(self, mode: str) -> list[float]:
        """Returns the GFLOP and GB of a step on all devices, by XLA, which would count the body of a loop only once."""
        function, arguments = self.calls[mode]
        with without_loops():
            analysis = function.lower(*arguments).compile().cost_analysis()
        return [jax.device_count() * analysis[name] / 1e9 for name in ("flops", "bytes accessed")]


def measure_peaks() -> dict[str, float]:
    """Returns GFLOP/s of a large float32 matrix product and GB/s of a copy, read and written, on all devices."""
    number, large = len(devices()), 1 if jax.default_backend() == "cpu" else 4
    n, size = large * 2048, large * 2**25
    matrices, numbers = timing.random_batch(0, number, n, n), timing.random_batch(1, number, size)
    product = timing.jitted(lambda a: jnp.einsum("dij,djk->dik", a, a), matrices)
    seconds = timing.interleave({"gemm": product, "copy": timing.jitted(lambda x: x + 1, numbers)}, 5)
    return {
        "gemm_gflops": 2e-9 * number * n**3 / seconds["gemm"],
        "copy_gbytes_per_second": 8e-9 * numbers.size / seconds["copy"],
    }


def markdown(rows: list[Row], name: str = "throughput") -> str:
    """Returns the page; `name` is that of its files."""
    forms = "eager or compiled" if rows[0]["compile_pytorch"] else "eager, without trying `torch.compile`"
    speeds = [{"zero_padded_images_per_second": None, **row} for row in rows]
    return page(rows, name, "throughput", forms=forms, speeds=speeds)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
