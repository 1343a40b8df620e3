"""Measures how the variance of the features changes from step to step before any training."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.common import entry, perturbations, plots
from experiments.common.config import check_counts, values
from experiments.common.results import Results, Row, page, table
from lowcost import data, nn
from lowcost.train.processes import devices


@dataclasses.dataclass(frozen=True)
class Config:
    """The networks to measure, and where to write the figures."""

    steps_per_block: tuple[int, ...] = (4, 16, 64)
    """Steps in each block: one measurement each."""
    width: nn.Width = "A"
    """Channels of the blocks. A: 32, 64, 128. B: 48, 96, 192. C: 32, 64, 128, 256."""
    h: float = 1.0
    """Time step; mobilenet has none."""
    images: int = 64
    """Number of images in the statistics."""
    seed: int = 0
    """Seed of the initial weights."""
    out: Path = Path("runs/results/depth")
    """Writes OUT.md, OUT.jsonl and OUT.png."""


def main(config: Config) -> None:
    """Measures, writes the three files, prints the table."""
    check_counts(config, "images")
    devices()  # raises if there are none
    images = data.load("digits").train.images[: config.images] / 255
    grid = itertools.product(config.steps_per_block, nn.ARCHITECTURES)
    results = Results(config, markdown, draw)
    results.add(measure(config, steps, architecture, images) for steps, architecture in grid)
    results.show()


def measure(config: Config, steps_per_block: int, architecture: nn.Architecture, images) -> Row:
    """Returns the variance of the features after every step of a network with its initial weights.

    Args:
        config: states width, time step (not used for "mobilenet") and seed.
        steps_per_block: steps in each block.
        architecture: one of `lowcost.nn.ARCHITECTURES`.
        images: [B, *grid, C] in [0, 1].
    """
    h = 1.0 if architecture == "mobilenet" else config.h
    net = nn.network(architecture, config.width, 10, steps_per_block=steps_per_block, h=h)
    images = jnp.asarray(images, jnp.float32)
    # Not jitted as a whole: hundreds of steps of three shapes are compiled once each, not once per step.
    features = perturbations.captured(net, net.init(jax.random.key(config.seed), images), images, train=True)
    names = [f"block{i + 1}_step{j + 1}" for i in range(len(net.channels)) for j in range(steps_per_block)]
    variances = [float(jnp.mean(jnp.var(features[name], axis=range(images.ndim - 1)))) for name in names]
    return {
        "architecture": architecture,
        **values(config, "width", "seed"),
        "h": None if architecture == "mobilenet" else config.h,
        "steps_per_block": steps_per_block,
        "images": len(images),
        "variances": variances,
        "block_ends": variances[steps_per_block - 1 :: steps_per_block],
        "smallest": min(variances),
        "largest": max(variances),
        "images_apart": float(jnp.mean(jnp.var(features[names[-1]], axis=0))) / variances[-1],
    }


def markdown(rows: list[Row], name: str = "depth") -> str:
    """Returns the page; `name` is that of its files."""
    blocks = {f"block {i + 1}": f"{{block_ends[{i}]:.2f}}" for i in range(len(rows[0]["block_ends"]))}
    extremes = {"smallest": "{smallest:.2f}", "largest": "{largest:.2f}", "between images": "{images_apart:.2f}"}
    columns = {"architecture": "{architecture}", "steps per block": "{steps_per_block}", **blocks, **extremes}
    return page(rows, name, "depth", table=table(rows, columns))


def draw(rows: list[Row], path: Path) -> None:
    """Draws variance against depth: one panel per number of steps, one line per architecture."""
    figure, axes = plots.panels_of_depths(rows, 3.8, xlabel="step")
    for row in rows:
        steps, depth = row["steps_per_block"], range(1, len(row["variances"]) + 1)
        style = plots.STYLES[row["architecture"]] | {"markersize": 4, "markevery": max(1, steps // 4)}
        axes[steps].semilogy(depth, row["variances"], label=row["architecture"], **style)
    figure.supylabel("variance of the features")
    plots.finish(figure, path, legend="outside right center")


if __name__ == "__main__":
    entry.run(main, Config)
