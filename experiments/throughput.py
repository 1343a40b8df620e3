"""Images per second of training and inference, ours against PyTorch networks of the same mathematics.

Writes throughput.jsonl and throughput.md. Ours and PyTorch's steps alternate in one process, so that a machine which
slows down slows both; medians. PyTorch is not a dependency: `pip install '.[benchmark]'`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.common import entry
from experiments.common.config import Architecture
from experiments.common.files import write_page, write_rows
from experiments.common.provenance import provenance
from experiments.common.timing import Step, interleave
from lowcost.extras import needs_extra

PERIODIC = ("implicit_rd", "circulant_rd", "implicit_circulant_rd")
"""Their steps are periodic in PyTorch too; the others are also timed with zero padding, which is cheaper."""

TEMPLATE = """# Training and inference against PyTorch

Width {width}, batches of {batch_size} images of {size}x{size} pixels, float32, {device}; JAX {jax_version}, PyTorch
{pytorch_version}. Images per second, medians of {rounds} interleaved rounds. PyTorch computes the same function of the
same weights, in the faster of channels first and last, {compiled}. *Zero padding*: the function that most
would write, with the cheaper convolutions at the border. Ratios are PyTorch's time over ours: above 1 ours is faster.

| architecture | mode | ours | PyTorch | its fastest form | ratio | with zero padding | ratio | compilation |
|:--|:--|--:|--:|:--|--:|--:|--:|--:|
{rows}

What a step of ours does, by XLA's count, and the share of the machine's measured peaks that is reached: {gemm:.0f}
GFLOP/s in a large matrix product, {copy:.1f} GB/s read and written in a copy.

| architecture | mode | GFLOP | of peak | GB read and written | of peak | memory |
|:--|:--|--:|--:|--:|--:|--:|
{counts}

Made by `python -m experiments.throughput --width {width} --batch-size {batch_size} --size {size} --rounds {rounds}
--architectures {architectures}{flag}`.
"""
ROW = (
    "| {architecture} | {mode} | {ours_images_per_second:,.0f} | {pytorch_images_per_second:,.0f} | {pytorch_form} "
    "| {ratio:.2f} | {zero_padded} | {zero_padded_ratio} | {compile_seconds:.1f} s |"
)
COUNTS = (
    "| {architecture} | {mode} | {gflop:.1f} | {gemm_share:.0%} | {gbytes:.1f} | {copy_share:.0%} "
    "| {memory_gib:.2f} GiB |"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time, and where to write it."""

    architectures: tuple[Architecture, ...] = get_args(Architecture)
    """Which networks."""
    width: Literal["A", "B", "C"] = "A"
    """Channels of the network: A, B or C."""
    batch_size: int = 100
    """Images a step."""
    size: int = 32
    """Pixels per side of the images."""
    rounds: int = 7
    """Of one step each, each after one to warm up."""
    compile_pytorch: bool = True
    """Also try torch.compile, which takes minutes."""
    out: Path = Path("experiments/results/throughput.jsonl")
    """One line per architecture and mode; the table is written beside it."""


def main(config: Config) -> None:
    """Time everything, write both files, print the table."""
    rows: list[dict] = []
    for architecture in config.architectures:
        more = entry.in_a_process(measure, config, architecture)  # no network's memory is in the way of another's
        rows += more
        write_rows(config.out, rows)
        write_page(config.out.with_suffix(".md"), markdown(rows))
        for row in more:
            print(f"{row['architecture']} {row['mode']}: ratio {row['ratio']:.2f}", flush=True)
    entry.show(markdown(rows))


def measure(config: Config, architecture: Architecture) -> list[dict]:
    """The rows of an architecture, training and inference.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: the PyTorch network's logits are not ours.
    """
    with needs_extra("benchmark"):
        import torch

    from lowcost.nn import block_channels
    from lowcost.train.mesh import use_every_core

    use_every_core(config.batch_size)
    peaks = measure_peaks()
    rows = []
    ours = Ours(architecture, config)
    theirs = Theirs(architecture, block_channels(config.width), ours)
    for mode in ("train", "inference"):
        form, step = theirs.fastest(mode, "circular", config.compile_pytorch)
        rivals = {"ours": ours.steps[mode], "pytorch": step}
        zero_padded = None
        if architecture not in PERIODIC:
            zero_padded, rivals["zeros"] = theirs.fastest(mode, "zeros", config.compile_pytorch)
        seconds = interleave(rivals, config.rounds)
        gflop, gbytes = ours.counts(mode)
        row = {
            "architecture": architecture,
            "mode": mode,
            "width": config.width,
            "batch_size": config.batch_size,
            "size": config.size,
            "rounds": config.rounds,
            "compile_pytorch": config.compile_pytorch,
            "ours_images_per_second": config.batch_size / seconds["ours"],
            "pytorch_images_per_second": config.batch_size / seconds["pytorch"],
            "ratio": seconds["pytorch"] / seconds["ours"],
            "pytorch_form": form,
            "zero_padded_images_per_second": config.batch_size / seconds["zeros"] if zero_padded else None,
            "zero_padded_ratio": seconds["zeros"] / seconds["ours"] if zero_padded else None,
            "zero_padded_form": zero_padded,
            "compile_seconds": ours.compile_seconds[mode],
            "gflop": gflop,
            "gbytes": gbytes,
            "gemm_share": gflop / seconds["ours"] / peaks["gemm"],
            "copy_share": gbytes / seconds["ours"] / peaks["copy"],
            "gemm_gflops": peaks["gemm"],
            "copy_gbytes_per_second": peaks["copy"],
            "memory_gib": ours.memory(mode),
            **provenance(),
            "pytorch_version": torch.__version__,
        }
        rows.append(row)
    return rows


class Ours:
    """The network here: `steps` of training and inference, each waiting for its result.

    Attributes:
        variables: of the network, as NumPy arrays.
        images: uint8, [B, H, W, 3]; labels [B].
        steps, compile_seconds: by mode.
    """

    def __init__(self, architecture: Architecture, config: Config):
        import jax
        import numpy as np
        import optax

        from lowcost import nn
        from lowcost.train.mesh import data_mesh, replicated, shard_batch
        from lowcost.train.state import create_state
        from lowcost.train.step import make_train_step, to_unit_range

        mesh = data_mesh(config.batch_size)
        jax.set_mesh(mesh)
        rng = np.random.default_rng(0)
        shape = (config.size, config.size, 3)
        self.images = rng.integers(0, 256, (config.batch_size, *shape), np.uint8)
        self.labels = rng.integers(0, 10, config.batch_size).astype(np.int32)
        batch = shard_batch(mesh, self.images, self.labels, np.arange(config.batch_size, dtype=np.int32))
        net, optimizer = nn.network(architecture, config.width, 10), optax.adam(1e-3)
        state = jax.jit(
            lambda: create_state(net, optimizer, jax.random.key(0), shape), out_shardings=replicated(mesh)
        )()
        self.variables = jax.device_get(state.variables)
        self.logits = lambda images: np.asarray(net.apply(self.variables, images))
        train = jax.jit(make_train_step(net, optimizer, lambda images, draw: images, 500), donate_argnums=0)
        infer = jax.jit(lambda state, images: net.apply(state.variables, to_unit_range(images)))
        self.arguments = {"train": (state, *batch), "inference": (state, batch[0])}
        self.functions = {"train": train, "inference": infer}
        self.programs: dict[str, Any] = {}
        self.compile_seconds: dict[str, float] = {}
        for mode, function in self.functions.items():
            started = time.perf_counter()
            self.programs[mode] = function.lower(*self.arguments[mode]).compile()
            self.compile_seconds[mode] = time.perf_counter() - started
        self.state = jax.device_put(jax.tree.map(np.array, jax.device_get(state)), replicated(mesh))
        self.steps: dict[str, Step] = {"train": self._train, "inference": self._infer}

    def _train(self) -> None:
        import jax

        self.state = jax.block_until_ready(self.programs["train"](self.state, *self.arguments["train"][1:]))

    def _infer(self) -> None:
        import jax

        jax.block_until_ready(self.programs["inference"](self.state, self.arguments["inference"][1]))

    def memory(self, mode: str) -> float:
        """GiB of arguments, results and all between, on all devices."""
        import jax

        size = self.programs[mode].memory_analysis()
        return jax.device_count() * (size.argument_size_in_bytes + size.temp_size_in_bytes) / 2**30

    def counts(self, mode: str) -> list[float]:
        """GFLOP and GB of a step on all devices, by XLA, which counts the body of a loop once: so without the loops."""
        from unittest import mock

        import jax

        with mock.patch("jax.lax.map", lambda function, images: jax.vmap(function)(images)):
            jax.clear_caches()
            analysis: Any = self.functions[mode].lower(*self.arguments[mode]).compile().cost_analysis()
        jax.clear_caches()
        return [jax.device_count() * analysis[name] / 1e9 for name in ("flops", "bytes accessed")]


class Theirs:
    """The network in PyTorch, with the weights of ours."""

    def __init__(self, architecture: Architecture, channels: tuple[int, ...], ours: Ours):
        import jax
        import numpy as np
        import torch

        from experiments.common.torch_networks import Network

        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.images = torch.tensor(ours.images.transpose(0, 3, 1, 2).copy(), device=self.device)
        self.labels = torch.tensor(ours.labels, dtype=torch.long, device=self.device)
        self.make = lambda padding: (
            Network(architecture, channels, 10, padding=padding).load(ours.variables).to(self.device)
        )
        some = ours.images[:4].astype(np.float32) / 255
        with torch.no_grad():
            theirs = self.make("circular").eval()(self.images[:4] / 255).cpu().numpy()
        apart = float(np.abs(theirs - ours.logits(some)).max())
        if apart > 1e-4 * max(1.0, float(np.abs(theirs).max())):
            raise ValueError(f"{architecture}: PyTorch's logits are {apart:.1e} from ours; the comparison is void")

    def fastest(self, mode: str, padding: str, compiled: bool) -> tuple[str, Step]:
        """The name and the step of the fastest form: channels first or last, and that one compiled."""
        eager = {layout: self._form(mode, padding, layout, False) for layout in ("first", "last")}
        seconds = interleave(eager, 3)
        layout = min(seconds, key=seconds.__getitem__)
        name = f"channels {layout}"
        forms = {f"eager, {name}": eager[layout]}
        if compiled:
            forms[f"compiled, {name}"] = self._form(mode, padding, layout, True)
        seconds = interleave(forms, 3)
        best = min(seconds, key=seconds.__getitem__)
        return best, forms[best]

    def _form(self, mode: str, padding: str, channels: str, compiled: bool) -> Step:
        import torch

        layout = torch.channels_last if channels == "last" else torch.contiguous_format
        net = self.make(padding).to(memory_format=layout).train(mode == "train")
        images = self.images.contiguous(memory_format=layout)
        call = torch.compile(net) if compiled else net
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

        def wait() -> None:
            if self.device == "cuda":
                torch.cuda.synchronize()

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(call(images / 255), self.labels).backward()
            optimizer.step()
            wait()

        @torch.inference_mode()
        def infer() -> None:
            call(images / 255)
            wait()

        return train if mode == "train" else infer


def measure_peaks() -> dict[str, float]:
    """{"gemm": GFLOP/s of a large float32 matrix product, "copy": GB/s of a copy, read and written}, all devices."""
    import jax
    import jax.numpy as jnp

    from lowcost.train import processes
    from lowcost.train.mesh import data_mesh, over_batch

    n, devices = 2048, len(processes.devices())
    sharding = over_batch(data_mesh(devices))
    a = jax.device_put(jnp.ones((devices, n, n)), sharding)
    product = jax.jit(lambda a: jnp.einsum("dij,djk->dik", a, a), out_shardings=sharding)
    big = jax.device_put(jnp.ones((devices, 2**25)), sharding)
    copy = jax.jit(lambda x: x + 1, out_shardings=sharding)
    seconds = interleave(
        {"gemm": lambda: jax.block_until_ready(product(a)), "copy": lambda: jax.block_until_ready(copy(big))}, 5
    )
    return {"gemm": 2e-9 * devices * n**3 / seconds["gemm"], "copy": 8e-9 * big.size / seconds["copy"]}


def markdown(rows: list[dict]) -> str:
    """Both tables."""
    first = rows[0]

    def line(row: dict) -> str:
        zeros, ratio = row["zero_padded_images_per_second"], row["zero_padded_ratio"]
        shown = {"zero_padded": f"{zeros:,.0f}", "zero_padded_ratio": f"{ratio:.2f}"} if zeros else {}
        return ROW.format(**{**row, "zero_padded": "", "zero_padded_ratio": "", **shown})

    return TEMPLATE.format(
        rows="\n".join(map(line, rows)),
        counts="\n".join(COUNTS.format(**row) for row in rows),
        gemm=first["gemm_gflops"],
        copy=first["copy_gbytes_per_second"],
        **{key: first[key] for key in ("width", "batch_size", "size", "rounds", "device", "jax_version")},
        pytorch_version=first["pytorch_version"],
        architectures=" ".join(dict.fromkeys(row["architecture"] for row in rows)),
        compiled="eager or compiled" if first["compile_pytorch"] else "eager, `torch.compile` not tried",
        flag="" if first["compile_pytorch"] else " --no-compile-pytorch",
    )


if __name__ == "__main__":
    entry.run(main, Config, long=True)
