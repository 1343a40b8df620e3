"""Measures Figure 1: the time of the fully coupled convolution divided by that of the low-cost operators.

At each point all operators alternate in one process. Their opponent is the faster fully coupled convolution: that of
this library, `fully_coupled(method="direct")`, or that of PyTorch, if it is installed: `pip install '.[benchmark]'`.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

import lowcost
from experiments.common import entry, plots, timing
from experiments.common.config import check_counts
from experiments.common.results import Results, Row, page, provenance
from lowcost.train.mesh import use_every_core

OPERATORS = {
    "depthwise direct": (partial(lowcost.depthwise, method="direct"), "O(n m² c)"),
    "depthwise FFT": (partial(lowcost.depthwise, method="fft"), "O(n c log n)"),
    "depthwise matmul": (partial(lowcost.depthwise, method="matmul"), "O(n³ᐟ² c)"),
    "implicit FFT": (partial(lowcost.depthwise_resolvent, h=1.0, method="fft"), "O(n c log n)"),
    "implicit matmul": (partial(lowcost.depthwise_resolvent, h=1.0, method="matmul"), "O(n³ᐟ² c)"),
    "circulant FFT": (partial(lowcost.circulant, method="fft"), "O(n c log(n c))"),
    "circulant matmul": (partial(lowcost.circulant, method="matmul"), "O(n³ᐟ² c + n c²)"),
}
"""The function of each line, (stencil, y) → features, and its order in Table 1."""
SPECTRAL = ("depthwise", "implicit", "circulant")
"""The operators that are computed both by FFT and by matrix product."""
SWEEPS = {"size": (16, 32, 64, 128), "kernel_size": (1, 3, 5, 7, 9), "channels": (16, 32, 64, 128, 256)}
"""The values of each panel; the short form takes the first two."""
PANELS = {"size": "image size", "kernel_size": "stencil size", "channels": "channels"}
MODES = {"forward": "forward", "gradient": "forward and backward"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time, and where to write the figures. The paper's figure: --batch-size 64."""

    batch_size: int = 2
    """Number of images; the paper has 64, for which a CPU takes hours."""
    size: int = 64
    """Pixels per side of the images, outside the panel that changes them."""
    channels: int = 256
    """Channels in and out, outside the panel that changes them."""
    kernel_size: int = 3
    """Points per side of the stencils, outside the panel that changes them."""
    rounds: int = 3
    """Rounds after one to warm up; each times every operator once, and the median counts."""
    short: bool = False
    """Measure two points per panel."""
    out: Path = Path("runs/results/figure1")
    """Writes OUT.md, OUT.jsonl, OUT.png and OUT_seconds.png."""


def main(config: Config) -> None:
    """Measures all points, writes the four files, prints the tables; the rows are written after each point."""
    check_counts(config, "batch_size", "size", "channels", "kernel_size", "rounds")
    use_every_core(config.batch_size, images_per_core=1)
    results = Results(config, markdown, draw)
    for point in points(config):
        rows = measure(point, config.rounds)
        print(point, {row["operator"]: f"{row['ratio']:.2f}" for row in rows}, flush=True)
        results.add(rows, complete=False)
    results.add([])
    results.show()


def points(config: Config) -> Iterator[Row]:
    """Yields every point once: those of the panels in both modes, those of other dimensions forward only."""
    names = ("batch_size", "size", "channels", "kernel_size")
    default = {"dims": 2, **{name: getattr(config, name) for name in names}}
    chosen = [
        default,
        *({**default, name: x} for name, values in SWEEPS.items() for x in values[: 2 if config.short else None]),
        {**default, "dims": 1, "size": 16 * config.size},
        {**default, "dims": 3, "size": max(8, config.size // 4)},
    ]
    for point in {tuple(point.items()): point for point in chosen}.values():
        for mode in MODES if point["dims"] == 2 else ("forward",):
            yield {**point, "mode": mode}


def measure(point: Row, rounds: int) -> list[Row]:
    """Returns the rows of one point, one per operator.

    Args:
        point: dims, batch_size, size, channels, kernel_size, and the mode: "forward", or "gradient" for the value and
            the gradients with respect to stencil and features.
        rounds: timed calls of each operator.
    """
    batch_size, channels, mode = point["batch_size"], point["channels"], point["mode"]
    grid, window = ((point[name],) * point["dims"] for name in ("size", "kernel_size"))
    keys = jax.random.split(jax.random.key(0))
    numbers = point["kernel_size"] ** point["dims"]
    stencil = jax.random.normal(keys[0], (*window, channels)) / numbers
    coupled = jax.random.normal(keys[1], (*window, channels, channels)) / (channels * numbers) ** 0.5
    y, z = (timing.random_batch(seed, batch_size, *grid, channels) for seed in (1, 2))

    def step(apply: Callable[..., jax.Array], weights: jax.Array) -> timing.Step:
        if mode == "forward":
            return timing.jitted(apply, weights, y)
        return timing.jitted(timing.value_and_gradients(apply), weights, y, z)

    steps = {name: step(apply, stencil) for name, (apply, _) in OPERATORS.items()}
    steps["lowcost"] = step(partial(lowcost.fully_coupled, method="direct"), coupled)
    steps |= pytorch(coupled, y, z, mode)
    seconds = timing.interleave(steps, rounds)
    opponents = {name: time for name, time in seconds.items() if name not in OPERATORS}
    best = min(opponents, key=opponents.__getitem__)
    about = {"opponent": best, **{f"{name} seconds": time for name, time in opponents.items()}, "rounds": rounds}
    about |= provenance() | {"pytorch_version": getattr(sys.modules.get("torch"), "__version__", "absent")}
    return [
        {**point, "operator": name, "seconds": seconds[name], "ratio": opponents[best] / seconds[name], **about}
        for name in OPERATORS
    ]


def pytorch(coupled: jax.Array, y: jax.Array, z: jax.Array, mode: str) -> dict[str, timing.Step]:
    """Returns PyTorch's fully coupled convolution in both memory layouts, none if PyTorch is not installed.

    It pads with zeros: neither cuDNN nor oneDNN has a periodic convolution.
    """
    try:
        import torch

        from experiments.common.torch_networks import Started
    except ImportError:
        return {}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dims = coupled.ndim - 2
    convolve = getattr(torch.nn.functional, f"conv{dims}d")
    layouts = {"channels first": torch.contiguous_format}
    if dims > 1:
        layouts["channels last"] = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    weights = torch.tensor(np.moveaxis(np.asarray(coupled), (-1, -2), (0, 1)).copy(), device=device)
    features, cotangent = (torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), device=device) for x in (y, z))

    torch.backends.cudnn.benchmark = device == "cuda"  # takes the fastest convolution, not the first

    def run(w, x, g):
        if mode == "forward":
            with torch.inference_mode():
                convolve(x, w, padding=w.shape[-1] // 2)
        else:
            w, x = (tensor.detach().requires_grad_() for tensor in (w, x))
            convolve(x, w, padding=w.shape[-1] // 2).backward(g)
        return Started()

    return {
        f"PyTorch, {name}": partial(run, *(x.contiguous(memory_format=layout) for x in (weights, features, cotangent)))
        for name, layout in layouts.items()
    }


def markdown(rows: list[Row], name: str = "figure1") -> str:
    """Returns the page; `name` is that of its files."""
    point = {key: rows[0][key] for key in ("dims", *PANELS)}
    ratios = {(row["operator"], row["mode"]): row["ratio"] for row in rows if point.items() <= row.items()}
    growth = [
        {"operator": name, "mode": label, "order": order, **exponents(rows, name, mode)}
        for name, (_, order) in OPERATORS.items()
        for mode, label in MODES.items()
    ]

    def by_mode(names: Iterable[str], cell: Callable[[str, str], str]) -> list[Row]:
        return [{"operator": name, **{mode: cell(name, mode) for mode in MODES}} for name in names]

    defaults = by_mode(OPERATORS, lambda name, mode: f"{ratios[name, mode]:.2f}")
    crossings = by_mode(SPECTRAL, partial(crossed_at, rows))
    others = [row | {"grid": "x".join([str(row["size"])] * row["dims"])} for row in rows if row["dims"] != 2]
    return page(rows, name, "figure1", defaults=defaults, crossings=crossings, growth=growth, others=others)


def panel(rows: list[Row], operator: str, mode: str, over: str) -> list[Row]:
    """Returns the rows of one line of a panel, in the order of the value that changes."""
    fixed = {key: rows[0][key] for key in ("dims", *PANELS) if key != over} | {"operator": operator, "mode": mode}
    return sorted((row for row in rows if fixed.items() <= row.items()), key=lambda row: row[over])


def crossed_at(rows: list[Row], name: str, mode: str) -> str:
    """Returns the channels from which the better method of an operator stays ahead, by log-log interpolation."""
    lines = [panel(rows, f"{name} {method}", mode, "channels") for method in ("FFT", "matmul")]
    channels = [row["channels"] for row in lines[0]]
    ratios = [max(row["ratio"] for row in pair) for pair in zip(*lines, strict=True)]
    last = max((i for i, ratio in enumerate(ratios) if ratio < 1), default=None)
    if last is None:
        return f"below {channels[0]}"
    if last == len(ratios) - 1:
        return f"above {channels[-1]}"
    x, y = np.log(channels[last : last + 2]), np.log(ratios[last : last + 2])
    return f"{np.exp(np.interp(0, y, x)):.0f}"


def exponents(rows: list[Row], operator: str, mode: str) -> dict[str, float]:
    """Returns the fitted power of the seconds in pixels, stencil size and channels, by the name of the panel."""
    fitted = {}
    for over in PANELS:
        values, seconds = np.log([(row[over], row["seconds"]) for row in panel(rows, operator, mode, over)]).T
        fitted[over] = np.polyfit(values, seconds, 1)[0] / (rows[0]["dims"] if over == "size" else 1)
    return fitted


def draw(rows: list[Row], path: Path) -> None:
    """Draws the ratios, and the seconds into a second file: forward in the upper row, with backward in the lower."""
    colours = {"depthwise": "#0072B2", "implicit": "#D55E00", "circulant": "#009E73"}  # Okabe and Ito's
    styles = {"direct": ":", "FFT": "--", "matmul": "-"}
    quantities = {"ratio": ("", "time(coupled) / time(ours)"), "seconds": ("_seconds", "seconds")}
    for quantity, (suffix, words) in quantities.items():
        figure, axes = plots.panels(len(PANELS), 11, 6.4, rows=len(MODES), sharey=True)
        for axis, (mode, over) in zip(axes, itertools.product(MODES, PANELS), strict=True):
            for name in OPERATORS:
                kind, method = name.split()
                line = panel(rows, name, mode, over)
                values = [row[over] for row in line]
                look: Row = {"color": colours[kind], "linestyle": styles[method], "marker": "o", "markersize": 3}
                axis.plot(values, [row[quantity] for row in line], label=name, **look)
            if quantity == "ratio":
                axis.axhline(1, color="black", linewidth=0.8)
            else:
                axis.plot(values, [row["seconds"] * row["ratio"] for row in line], "k", label="fully coupled")
            axis.set(xscale="log", yscale="log", xlabel=PANELS[over], ylabel=f"{MODES[mode]}\n{words}")
            axis.label_outer()
            axis.set_xticks(values, list(map(str, values)))
            axis.set_xticks([], minor=True)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3, which="minor")
        plots.finish(figure, path.with_stem(path.stem + suffix), ncols=4)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
