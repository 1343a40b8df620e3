"""Computes Table 1 in numbers: the weights and multiply-adds of one layer of each kind, for one image."""

import dataclasses
from pathlib import Path

from experiments.common import entry
from experiments.common.results import Results, Row, page
from lowcost import cost

LAYERS = {
    "fully coupled": (lambda grid, window, c: cost.fully_coupled(grid, window, c, c), "O(m²c²)", "O(nm²c²)"),
    "RD explicit": (cost.explicit_rd, "O(m²c + c²)", "O(n(m²c + c²))"),
    "RD implicit": (cost.implicit_rd, "O(m²c + c²)", "O(n(c log(n) + c²))"),
    "RD circulant": (cost.circulant_rd, "O(m²c + c²)", "O(nc log(nc) + nc²)"),
}
"""The cost of each layer, and the orders of its weights and multiply-adds: the paper's but for the last one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The layer to count, and where to write the table."""

    size: int = 64
    """Pixels per side of the image: n = size²."""
    kernel_size: int = 3
    """Points per side of the stencil: m."""
    channels: int = 256
    """Channels in and out: c."""
    out: Path = Path("runs/results/table1")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Counts, writes both files, prints the table."""
    results = Results(config, markdown)
    results.add(count(config.size, config.kernel_size, config.channels))
    results.show()


def count(size: int, kernel_size: int, channels: int) -> list[Row]:
    """Returns the rows of the table, the fully coupled layer first.

    Raises:
        ValueError: a size is below one, or the stencil is larger than the image.
    """
    shared = {"size": size, "kernel_size": kernel_size, "channels": channels}
    rows: list[Row] = []
    for name, (layer, weights_order, multiply_adds_order) in LAYERS.items():
        weights, multiply_adds = layer((size, size), (kernel_size, kernel_size), channels)
        ratio = multiply_adds / (rows[0]["multiply_adds"] if rows else multiply_adds)
        orders = {"weights_order": weights_order, "multiply_adds_order": multiply_adds_order}
        counts = {"weights": weights, "multiply_adds": multiply_adds, "ratio_to_fully_coupled": ratio}
        rows.append({"layer": name, **shared, **orders, **counts})
    return rows


def markdown(rows: list[Row], name: str = "table1") -> str:
    """Returns the page; `name` is that of its files."""
    return page(rows, name, "table1")


if __name__ == "__main__":
    entry.run(main, Config)
