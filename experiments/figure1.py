"""Figure 1: how much faster the low-cost convolutions are than the best fully coupled one on this machine.

Writes figure1.jsonl, figure1.md, figure1.png and figure1_seconds.png. At each point all operators alternate in one
process, and the opponent is the faster of XLA's and PyTorch's fully coupled convolution; without PyTorch
(`pip install '.[benchmark]'`) XLA's.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.common import entry
from experiments.common.files import save_figure, write_page, write_rows
from experiments.common.provenance import provenance
from experiments.common.timing import Step, interleave

OPERATORS = {
    "depthwise direct": ("depthwise", "direct"),
    "depthwise FFT": ("depthwise", "fft"),
    "depthwise matmul": ("depthwise", "matmul"),
    "implicit FFT": ("depthwise_resolvent", "fft"),
    "implicit matmul": ("depthwise_resolvent", "matmul"),
    "circulant FFT": ("circulant", "fft"),
    "circulant matmul": ("circulant", "matmul"),
}
"""Function and method of each line."""

SPECTRAL = ("depthwise", "implicit", "circulant")
"""What is computed both by FFT and by matrix product."""

PANELS = {"size": "image size", "kernel_size": "stencil size", "channels": "channels"}
LABELS = {"forward": "forward", "gradient": "forward and backward"}

TEMPLATE = """# Figure 1: time of the fully coupled convolution over ours

{batch_size} images (the paper: 64) of {size}x{size} pixels, {channels} channels, stencils {kernel_size}x{kernel_size},
but for the one measured; medians of {rounds} interleaved rounds, float32, {device}; JAX {jax_version}, PyTorch
{pytorch_version}. The opponent is the faster of XLA's and PyTorch's fully coupled convolution at each point. Above 1
ours is faster.

![runtime ratios](figure1.png)

At the default point:

| operator | forward | forward and backward |
|:--|--:|--:|
{defaults}

Channels from which on the better of FFT and matmul is faster than the fully coupled convolution (interpolated; the
paper says about 200, forward):

| operator | forward | forward and backward |
|:--|--:|--:|
{crossings}

How the time grows, t ~ nᵃ with n pixels, cᵇ with c channels, mᵈ with stencils of m points a side, fitted over the
points above, beside the orders of Table 1:

| operator | mode | a | b | d | Table 1 |
|:--|:--|--:|--:|--:|:--|
{exponents}

![seconds](figure1_seconds.png)

One and three dimensions, forward:

| | operator | ratio |
|:--|:--|--:|
{dimensions}

Made by `python -m experiments.figure1 --batch-size {batch_size} --size {size} --channels {channels} --kernel-size
{kernel_size} --rounds {rounds}`.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time, and where to write it. The paper's figure: --batch-size 64."""

    batch_size: int = 2
    """Images; the paper has 64, for which a CPU takes hours."""
    size: int = 64
    """Pixels per side of the images, but for the panel over them."""
    channels: int = 256
    """Channels in and out, but for the panel over them."""
    kernel_size: int = 3
    """Points per side of the stencils, but for the panel over them."""
    sizes: tuple[int, ...] = (16, 32, 64, 128)
    """The points of the first panel."""
    kernel_sizes: tuple[int, ...] = (1, 3, 5, 7, 9)
    """The points of the second."""
    channel_counts: tuple[int, ...] = (16, 32, 64, 128, 256)
    """The points of the third."""
    rounds: int = 3
    """Of one call of each, each after one to warm up; the median counts."""
    out_dir: Path = Path("experiments/results")
    """Folder for figure1.jsonl, figure1.md and figure1.png."""


def main(config: Config) -> None:
    """Time all points, write the four files, print the table."""
    from lowcost.train.mesh import use_every_core

    use_every_core(8 * config.batch_size)  # a device gets a single image where there are no more
    rows: list[dict] = []
    for point in points(config):
        rows += measure(**point, rounds=config.rounds)
        latest = {row["operator"]: f"{row['ratio']:.2f}" for row in rows[-len(OPERATORS) :]}
        print(point, latest, flush=True)
        write_rows(config.out_dir / "figure1.jsonl", rows)
    table = markdown(rows)
    write_page(config.out_dir / "figure1.md", table)
    draw(rows, config.out_dir / "figure1.png")
    draw(rows, config.out_dir / "figure1_seconds.png", "seconds")
    entry.show(table)


def points(config: Config) -> Iterator[dict]:
    """Every point once, of the panels and in one and three dimensions, forward and with gradients."""
    default = {"dims": 2, **{name: getattr(config, name) for name in ("batch_size", "size", "channels", "kernel_size")}}
    panels = [default]
    panels += [{**default, "size": size} for size in config.sizes]
    panels += [{**default, "kernel_size": m} for m in config.kernel_sizes]
    panels += [{**default, "channels": c} for c in config.channel_counts]
    panels += [
        {**default, "dims": 1, "size": 16 * config.size},
        {**default, "dims": 3, "size": max(8, config.size // 4)},
    ]
    unique = {tuple(point.items()): point for point in panels}
    for point, mode in itertools.product(unique.values(), LABELS):
        if mode == "forward" or point["dims"] == 2:
            yield {**point, "mode": mode}


def measure(
    dims: int, batch_size: int, size: int, channels: int, kernel_size: int, mode: str, *, rounds: int
) -> list[dict]:
    """The rows of one point, one per operator.

    Args:
        dims: of the grid; size: points per axis; kernel_size: of the stencil's axes.
        mode: "forward" or "gradient", value and gradients of stencil and features.
    """
    import jax
    import jax.numpy as jnp

    import lowcost
    from lowcost.train.mesh import data_mesh, over_batch
    from lowcost.train.processes import devices

    mesh = data_mesh(batch_size) if batch_size % len(devices()) == 0 else None
    if mesh:
        jax.set_mesh(mesh)
    window, grid = (kernel_size,) * dims, (size,) * dims
    keys = jax.random.split(jax.random.key(0), 4)
    stencil = jax.random.normal(keys[0], (*window, channels)) / kernel_size**dims
    coupled = jax.random.normal(keys[1], (*window, channels, channels)) / (channels * kernel_size**dims) ** 0.5
    y, z = (jax.random.normal(key, (batch_size, *grid, channels)) for key in keys[2:])
    if mesh:
        y, z = jax.device_put((y, z), over_batch(mesh))

    def step(apply: Callable, weights: Any) -> Step:
        if mode == "forward":
            run = jax.jit(apply)
            return lambda: jax.block_until_ready(run(weights, y))
        both = jax.jit(lambda w, y, z: jax.value_and_grad(lambda w, y: jnp.vdot(apply(w, y), z), (0, 1))(w, y))
        return lambda: jax.block_until_ready(both(weights, y, z))

    def function(name: str, method: str) -> Callable:
        apply = getattr(lowcost, name)
        if name == "depthwise_resolvent":
            return lambda weights, y: apply(weights, y, 1.0, method=method)
        return lambda weights, y: apply(weights, y, method=method)

    steps = {name: step(function(*how), stencil) for name, how in OPERATORS.items()}
    steps["XLA"] = step(function("fully_coupled", "direct"), coupled)
    steps |= _pytorch(coupled, y, z, mode)
    seconds = interleave(steps, rounds)
    opponents = {name: seconds[name] for name in seconds if name not in OPERATORS}
    best = min(opponents, key=opponents.__getitem__)
    point = {"dims": dims, "batch_size": batch_size, "size": size, "channels": channels, "kernel_size": kernel_size}
    return [
        {
            **point,
            "mode": mode,
            "operator": name,
            "seconds": seconds[name],
            "ratio": opponents[best] / seconds[name],
            "opponent": best,
            **{f"{opponent} seconds": time for opponent, time in opponents.items()},
            "rounds": rounds,
            **provenance(),
            "pytorch_version": _pytorch_version(),
        }
        for name in OPERATORS
    ]


def _pytorch(coupled: Any, y: Any, z: Any, mode: str) -> dict[str, Step]:
    """PyTorch's fully coupled convolution, zero-padded as cuDNN and oneDNN know it, channels first and last."""
    try:
        import torch
    except ImportError:
        return {}
    import jax
    import numpy as np

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dims = coupled.ndim - 2
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[dims - 1]
    layouts = {"channels first": torch.contiguous_format}
    if dims > 1:
        layouts["channels last"] = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    weights = torch.tensor(np.moveaxis(np.asarray(coupled), (-1, -2), (0, 1)).copy(), device=device)
    features, cotangent = (torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), device=device) for x in (y, z))

    def step(layout: Any) -> Step:
        w, x, g = (tensor.contiguous(memory_format=layout) for tensor in (weights, features, cotangent))

        def run() -> None:
            if mode == "forward":
                with torch.inference_mode():
                    convolve(x, w, padding=w.shape[-1] // 2)
            else:
                a, b = (tensor.detach().requires_grad_() for tensor in (w, x))
                convolve(b, a, padding=w.shape[-1] // 2).backward(g)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {f"PyTorch, {name}": step(layout) for name, layout in layouts.items()}


def _pytorch_version() -> str:
    try:
        import torch
    except ImportError:
        return "absent"
    return torch.__version__


def markdown(rows: list[dict]) -> str:
    """The page of the results, all of it from the rows."""
    first = rows[0]

    def ratio(operator: str, mode: str) -> str:
        where = {"operator": operator, "mode": mode, **{key: first[key] for key in ("dims", *PANELS)}}
        return next(f"{row['ratio']:.2f}" for row in rows if where.items() <= row.items())

    defaults = "\n".join(f"| {name} | {ratio(name, 'forward')} | {ratio(name, 'gradient')} |" for name in OPERATORS)
    crossing = "\n".join(
        f"| {name} | {crossed_at(rows, name, 'forward')} | {crossed_at(rows, name, 'gradient')} |" for name in SPECTRAL
    )
    grown = "\n".join(
        f"| {name} | {LABELS[mode]} | " + " | ".join(_exponents(rows, name, mode)) + f" | {_order(name)} |"
        for name in OPERATORS
        for mode in LABELS
    )
    dimensions = "\n".join(
        f"| {r['dims']}-D, {'x'.join([str(r['size'])] * r['dims'])} | {r['operator']} | {r['ratio']:.2f} |"
        for r in rows
        if r["dims"] != 2
    )
    return TEMPLATE.format(**first, defaults=defaults, crossings=crossing, exponents=grown, dimensions=dimensions)


def panel(rows: list[dict], operator: str, mode: str, over: str) -> list[dict]:
    """The rows of a line of a panel, in its order."""
    first = rows[0]
    fixed = {key: first[key] for key in ("dims", *PANELS) if key != over}
    line = [r for r in rows if r["operator"] == operator and r["mode"] == mode and fixed.items() <= r.items()]
    return sorted(line, key=lambda row: row[over])


def crossed_at(rows: list[dict], name: str, mode: str) -> str:
    """The channels from which on the better method of a spectral operator stays ahead, by log-log interpolation."""
    import numpy as np

    lines = [panel(rows, f"{name} {method}", mode, "channels") for method in ("FFT", "matmul")]
    channels = [row["channels"] for row in lines[0]]
    ratios = [max(row["ratio"] for row in rows) for rows in zip(*lines, strict=True)]
    behind = [i for i, value in enumerate(ratios) if value < 1]
    if not behind:
        return f"below {channels[0]}"
    last = behind[-1]
    if last == len(ratios) - 1:
        return f"above {channels[-1]}"
    x, y = np.log(channels[last : last + 2]), np.log(ratios[last : last + 2])
    return f"{np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])):.0f}"


def _exponents(rows: list[dict], operator: str, mode: str) -> list[str]:
    import numpy as np

    fitted = []
    for over, power in (("size", rows[0]["dims"]), ("channels", 1), ("kernel_size", 1)):
        line = panel(rows, operator, mode, over)
        slope = np.polyfit(np.log([r[over] for r in line]), np.log([r["seconds"] for r in line]), 1)[0]
        fitted.append(f"{slope / power:.2f}")
    return fitted


def _order(operator: str) -> str:
    kind, method = operator.split()
    if method == "direct":
        return "O(n m² c)"
    if method == "matmul":
        return "O(n³ᐟ² c)" if kind != "circulant" else "O(n³ᐟ² c + n c²)"
    return "O(n c log n)" if kind != "circulant" else "O(n c log(n c))"


def draw(rows: list[dict], path: Path, quantity: str = "ratio") -> None:
    """The three panels, forward above, forward and backward below: of the ratios, or of the "seconds" themselves."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    colours = {"depthwise": "#0072B2", "implicit": "#D55E00", "circulant": "#009E73"}  # Okabe and Ito's
    styles = {"direct": ":", "FFT": "--", "matmul": "-"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharey=True, layout="constrained")
    for (i, mode), (j, (over, label)) in itertools.product(enumerate(LABELS), enumerate(PANELS.items())):
        axis = axes[i, j]
        for name in OPERATORS:
            kind, method = name.split()
            line = panel(rows, name, mode, over)
            look = {"color": colours[kind], "linestyle": styles[method], "marker": "o", "markersize": 3}
            axis.plot([r[over] for r in line], [r[quantity] for r in line], label=name, **look)
        if quantity == "ratio":
            axis.axhline(1, color="black", linewidth=0.8)
        else:
            axis.plot([r[over] for r in line], [r["seconds"] * r["ratio"] for r in line], "k", label="fully coupled")
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_major_locator(FixedLocator([r[over] for r in line]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.3, which="both")
        if i:
            axis.set_xlabel(label)
        if not j:
            shown = "time(coupled) / time(ours)" if quantity == "ratio" else "seconds"
            axis.set_ylabel(f"{LABELS[mode]}\n{shown}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    save_figure(figure, path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
