"""The signal over depth: how the variance of the features goes from layer to layer before any training.

Writes depth.md, depth.jsonl and depth.png, and prints the table.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.common import entry
from experiments.common.config import Architecture
from experiments.common.files import save_figure, write_results
from experiments.common.styles import STYLES

TEMPLATE = """# The signal over depth, before training

Network {width} with h = {h:g} on {images} of the handwritten digits, seed {seed}, normalised as in training: the
variance of the features over images and pixels, averaged over the channels, after the last step of each block, and
the smallest and largest over all layers. The normalisation that ends each block makes it 1 again. *Images apart*: the
share of that variance which is between images at the same pixel, in the last layer; at 0 all images would look alike.

| steps a block | architecture | block 1 | block 2 | block 3 | smallest | largest | images apart |
|--:|:--|--:|--:|--:|--:|--:|--:|
{rows}

![variance over depth](depth.png)

Made by `python -m experiments.depth --steps-per-block {numbers} --width {width} --h {h:g} --images {images}
--seed {seed}`.
"""

ROW = "| {steps_per_block} | {architecture} | {ends} | {smallest:.2f} | {largest:.2f} | {images_apart:.2f} |"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where to write it."""

    steps_per_block: tuple[int, ...] = (4, 16, 64)
    """Steps in each block: one measurement each."""
    width: Literal["A", "B", "C"] = "A"
    """Channels of the network: A, B or C."""
    h: float = 1.0
    """Time step; MobileNet has none."""
    images: int = 64
    """How many images the statistics are taken over."""
    seed: int = 0
    """Of the initial weights."""
    out_dir: Path = Path("experiments/results")
    """Folder for depth.md, depth.jsonl and depth.png."""


def main(config: Config) -> None:
    """Measure, write the three files, print the table."""
    from lowcost import data, nn
    from lowcost.train.processes import devices

    devices()  # raises where there are none
    images = data.load("digits").train.images[: config.images]
    rows = [
        measure(architecture, images / 255, steps, width=config.width, h=config.h, seed=config.seed)
        for steps in config.steps_per_block
        for architecture in nn.ARCHITECTURES
    ]
    table = TEMPLATE.format(
        rows="\n".join(ROW.format(ends=" | ".join(f"{x:.2f}" for x in row["block_ends"]), **row) for row in rows),
        numbers=" ".join(map(str, config.steps_per_block)),
        **dataclasses.asdict(config),
    )
    write_results(config.out_dir / "depth", rows, table)
    draw(rows, config.out_dir / "depth.png")
    entry.show(table)


def measure(
    architecture: Architecture,
    images,
    steps_per_block: int,
    *,
    width: Sequence[int] | Literal["A", "B", "C"] = "A",
    h: float = 1.0,
    seed: int = 0,
) -> dict:
    """The variance of the features of every step of a network with its initial weights.

    Args:
        architecture: one of `lowcost.nn.ARCHITECTURES`.
        images: [B, *grid, C] in [0, 1].
        steps_per_block, width, h: of the network; h is left out for "mobilenet".
        seed: of the weights.

    Returns:
        A line of depth.jsonl.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lowcost import nn

    net = nn.network(
        architecture, width, 10, steps_per_block=steps_per_block, h=1.0 if architecture == "mobilenet" else h
    )
    images = jnp.asarray(images, jnp.float32)
    # Not jitted as a whole: hundreds of steps of three shapes are compiled once each, not once per step.
    _, state = net.init_with_output(
        jax.random.key(seed), images, train=True, mutable=True, capture_intermediates=_is_step
    )
    features = {name: outputs["__call__"][0] for name, outputs in state["intermediates"].items()}
    names = [f"block{i + 1}_step{j + 1}" for i in range(len(net.channels)) for j in range(steps_per_block)]
    dims = tuple(range(images.ndim - 1))
    variances = [float(jnp.mean(jnp.var(features[name], axis=dims))) for name in names]
    last = features[names[-1]]
    between = float(jnp.mean(jnp.var(last, axis=0)))
    return {
        "architecture": architecture,
        "width": width,
        "h": None if architecture == "mobilenet" else h,
        "steps_per_block": steps_per_block,
        "seed": seed,
        "images": len(images),
        "variances": variances,
        "block_ends": variances[steps_per_block - 1 :: steps_per_block],
        "smallest": float(np.min(variances)),
        "largest": float(np.max(variances)),
        "images_apart": between / variances[-1],
    }


def _is_step(module, method):
    return "_step" in (module.name or "") and method == "__call__"


def draw(rows: list[dict], path: Path) -> None:
    """Variance against depth: a panel for each number of steps, a line for each architecture."""
    from matplotlib.figure import Figure

    panels = sorted({row["steps_per_block"] for row in rows})
    figure = Figure(figsize=(4 * len(panels), 3.8), layout="constrained")
    for axes, steps in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for row in rows:
            if row["steps_per_block"] == steps:
                style = STYLES[row["architecture"]] | {"markersize": 4, "markevery": max(1, steps // 4)}
                axes.semilogy(range(1, len(row["variances"]) + 1), row["variances"], label=row["architecture"], **style)
        axes.set(title=f"{steps} steps a block", xlabel="step")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.supylabel("variance of the features")
    save_figure(figure, path, dpi=120)


if __name__ == "__main__":
    entry.run(main, Config)
