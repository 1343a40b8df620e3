"""Table 1 in numbers: the weights and multiply-adds of one layer of each kind, for one image.

Writes table1.md and table1.jsonl, and prints the table.
"""

import dataclasses
from pathlib import Path

from experiments.common import entry
from experiments.common.files import write_results

ORDERS = {
    "fully coupled": ("O(m²c²)", "O(nm²c²)"),
    "RD explicit": ("O(m²c + c²)", "O(n(m²c + c²))"),
    "RD implicit": ("O(m²c + c²)", "O(n(c log(n) + c²))"),
    "RD circulant": ("O(m²c + c²)", "O(nc log(nc) + nc²)"),
}
"""Orders of the weights and of the multiply-adds: the paper's but for the last, see the note below the table."""

TEMPLATE = """# Table 1: the cost of one layer

One image of n = {size}x{size} pixels, stencils of m = {kernel_size} points a side, c = {channels} channels in and out.

| layer | weights, order | weights | multiply-adds, order | multiply-adds | ratio to fully coupled |
|:--|:--|--:|:--|--:|--:|
{rows}

RD explicit applies its stencils directly, RD implicit and RD circulant by FFT; `lowcost.cost` says what is counted. For
RD circulant the paper prints O(nc log(nc)), its diffusion alone; here its 1x1 reaction is counted as in the other rows.

Made by `python -m experiments.table1 --size {size} --kernel-size {kernel_size} --channels {channels}`.
"""

ROW = (
    "| {layer} | {weights_order} | {weights:,} | {multiply_adds_order} | {multiply_adds:,} "
    "| {ratio_to_fully_coupled:.3f} |"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to count, and where to write it."""

    size: int = 64
    """Pixels per side of the image: n = size²."""
    kernel_size: int = 3
    """Points per side of the stencil: m."""
    channels: int = 256
    """Channels in and out: c."""
    out_dir: Path = Path("experiments/results")
    """Folder for table1.md and table1.jsonl."""


def main(config: Config) -> None:
    """Count, write both files, print the table."""
    rows = count(config.size, config.kernel_size, config.channels)
    table = TEMPLATE.format(rows="\n".join(ROW.format(**row) for row in rows), **dataclasses.asdict(config))
    write_results(config.out_dir / "table1", rows, table)
    entry.show(table)


def count(size: int, kernel_size: int, channels: int) -> list[dict]:
    """The rows of the table, the fully coupled one first.

    Raises:
        ValueError: a size below one, or a stencil larger than the image.
    """
    from lowcost import cost

    grid, window = (size, size), (kernel_size, kernel_size)
    layers = {
        "fully coupled": cost.fully_coupled(grid, window, channels, channels),
        "RD explicit": cost.explicit_rd(grid, window, channels),
        "RD implicit": cost.implicit_rd(grid, window, channels),
        "RD circulant": cost.circulant_rd(grid, window, channels),
    }
    return [
        {
            "layer": name,
            "size": size,
            "kernel_size": kernel_size,
            "channels": channels,
            "weights_order": ORDERS[name][0],
            "weights": layer.weights,
            "multiply_adds_order": ORDERS[name][1],
            "multiply_adds": layer.multiply_adds,
            "ratio_to_fully_coupled": layer.multiply_adds / layers["fully coupled"].multiply_adds,
        }
        for name, layer in layers.items()
    ]


if __name__ == "__main__":
    entry.run(main, Config)
