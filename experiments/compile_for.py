"""Compiles training and inference for TPUs and GPUs that this machine lacks, and reads bytes, time and memory per chip.

XLA's compilers run without a device: `pip install '.[experiments,tpu,compile-gpu]'` in an environment of its own. The
times are estimates: they rank programs for one chip, and are no measurements.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.linen import Module
from jax.sharding import Mesh

from experiments.common import entry, flax_networks, recipes, topologies
from experiments.common.config import Architecture, check_counts, values
from experiments.common.results import Results, Row, commit, filled, grouped, page
from experiments.common.setup import abstract
from lowcost import nn
from lowcost.data.dataset import PHOTOGRAPHS
from lowcost.scaling import to_unit_range
from lowcost.train.mesh import over_batch, replicated
from lowcost.train.state import create_state
from lowcost.train.step import make_train_step, repeat

FLAX = {"flax resnet": flax_networks.ResNet, "flax mobilenet": flax_networks.MobileNet}
"""What ours are compared with: plain Flax networks with circular padding."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile, and where to write the figures."""

    topologies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Chips and their shape, e.g. v5e:2x2, v6e:2x2, v5p:2x2x1, h100:1x1x8."""
    architectures: tuple[Architecture, ...] = get_args(Architecture)
    """Our networks."""
    width: nn.Width = "A"
    """Channels of the blocks. A: 32, 64, 128. B: 48, 96, 192. C: 32, 64, 128, 256."""
    per_chip: int = 128
    """Images per chip and step."""
    size: int = 32
    """Pixels per side of the images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the features."""
    modes: tuple[Literal["train", "inference"], ...] = ("train", "inference")
    """What to compile."""
    out: Path = Path("runs/results/compile_for")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Compiles all networks for all topologies, writes both files after each, prints the tables."""
    check_counts(config, "per_chip", "size")
    if not config.topologies:
        raise ValueError("TOPOLOGIES must name at least one, got none; e.g. v5e:2x2 or h100:1x1x8")
    results = Results(config, markdown, without=("topologies",))
    shared = values(config, "width", "per_chip", "size", "dtype")
    for topology in config.topologies:
        mesh = topologies.mesh(topology)
        for name in (*FLAX, *config.architectures):
            net = network(name, config.width, config.dtype)
            for mode in config.modes:
                row = measure(net, mesh, topology, mode, config.per_chip, (config.size, config.size, 3))
                results.add([{"topology": topology, "network": name, "mode": mode, **shared, **row}])
                estimate = f"{row['milliseconds']:.2f} ms, {row['bytes'] / 1e9:.2f} GB"
                print(f"{topology} {name} {mode}: {estimate}", flush=True)
    results.show()


def network(name: str, width: nn.Width | tuple[int, ...], dtype: str) -> Module:
    """Returns one of our networks, or one of `FLAX`, for ten classes."""
    if name in FLAX:
        return FLAX[name](nn.block_channels(width), 10, dtype=jnp.dtype(dtype))
    return nn.network(name, width, 10, dtype=jnp.dtype(dtype))  # type: ignore[arg-type]


def measure(
    net: Module, mesh: Mesh, topology: str, mode: str, per_chip: int, shape: tuple[int, ...], steps: int = 0
) -> Row:
    """Returns what XLA reports of a program of one network, see `topologies.report`.

    Args:
        net: the network.
        mesh: the devices.
        topology: their name.
        mode: "train" for one step of the recipe "paper", or "inference".
        per_chip: images per chip.
        shape: of an image.
        steps: number of training steps in one program, as `repeat` runs them; 0 for a single one, without a loop.
    """
    chip = topology.partition(":")[0]
    started = time.monotonic()
    with jax.set_mesh(mesh):
        batch = per_chip * mesh.size
        train = mode == "train"
        program, arguments = _training(net, mesh, batch, shape, steps) if train else _inference(net, mesh, batch, shape)
        compiled = topologies.compiled(program.lower(*arguments), chip)
    seconds = round(time.monotonic() - started, 1)
    about = {"chips": mesh.size, "jax_version": jax.__version__, "commit": commit()}
    return {**topologies.report(compiled, chip), "compile_seconds": seconds, **about}


def _training(net: Any, mesh: Mesh, batch: int, shape: tuple[int, ...], steps: int) -> tuple[Any, list[Any]]:
    recipe = recipes.RECIPES["paper"]
    optimizer = recipe.transformation(300, 390)
    step = make_train_step(net, optimizer, recipe.augmentation(PHOTOGRAPHS), 390)
    state = abstract(lambda: create_state(net, optimizer, jax.random.key(0), shape), replicated(mesh))
    kinds = [(shape, np.uint8), ((), np.int32), ((), np.int32)]
    lead = (steps,) if steps else ()
    arrays = [jax.ShapeDtypeStruct((*lead, batch, *s), t, sharding=over_batch(mesh, len(lead))) for s, t in kinds]
    number = [jax.ShapeDtypeStruct((), np.int32, sharding=replicated(mesh))] if steps else []
    program = jax.jit(repeat(step) if steps else step, donate_argnums=0, out_shardings=replicated(mesh))
    return program, [state, *number, *arrays]


def _inference(net: Any, mesh: Mesh, batch: int, shape: tuple[int, ...]) -> tuple[Any, list[Any]]:
    variables = abstract(lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape))), replicated(mesh))
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8, sharding=over_batch(mesh))
    program = jax.jit(lambda variables, images: net.apply(variables, to_unit_range(images)))
    return program, [variables, images]


def markdown(rows: list[Row], name: str = "compile_for") -> str:
    """Returns the page, with one table per topology and mode; `name` is that of its files."""
    tables = []
    for some in grouped(rows, lambda row: (row["topology"], row["mode"])):
        topology, mode = some[0]["topology"], some[0]["mode"]
        base = next((row for row in some if row["network"] == "resnet"), some[0])
        lines = [_cells(row, base) for row in some]
        tables.append(filled("compile_for_table", topology=topology, mode=mode, base=base["network"], lines=lines))
    names = " ".join(dict.fromkeys(row["topology"] for row in rows))
    return page(rows, name, f"compile_for {names}", tables="\n".join(tables).rstrip())


def _cells(row: Row, base: Row) -> Row:
    """Returns the row of one network with what the page shows of it, relative to `base`."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in row["collectives"].items())
    return row | {
        "milliseconds_ratio": row["milliseconds"] / base["milliseconds"],
        "gb": row["bytes"] / 1e9,
        "bytes_ratio": row["bytes"] / base["bytes"],
        "gflop": row["flops"] / 1e9 if row["flops"] else None,
        "mib": row["temporary_bytes"] / 2**20 if row["temporary_bytes"] else None,
        "exchanged": f"{kinds}: {row['collective_bytes'] / 1e3:,.0f} kB" if kinds else None,
    }


if __name__ == "__main__":
    entry.run(main, Config)
