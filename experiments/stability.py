"""Depth and step size (Section 3.2.2): does the forward propagation stay bounded, explicit against implicit?

The features of each step relative to those that come out of the opening, at initialisation and after training on the
handwritten digits, the time step being changed afterwards. Writes stability.md, stability.jsonl and stability.png.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import entry
from experiments.common.config import TrainConfig
from experiments.common.files import save_figure, write_results
from experiments.common.flags import shown
from experiments.common.styles import STYLES
from experiments.common.workdir import finished

LIMIT = 1e3
"""Features that grew by more than this factor count as unbounded."""

TEMPLATE = """# Depth and step size

Network A on {images} of the handwritten digits, seed {seed}. The weights are those of h = 1: initial ones, or trained
for {epochs} epochs. Then h alone is changed. The reaction is normalised by the statistics of the batch, found anew for
each h; or by those of training, which no longer fit, so that the reaction grows too, whatever the diffusion does.
*Bounded to*: the largest h of {first:g} … {last:g} ({count} values) up to which no feature after any step is more
than {limit:,.0f} times as large as those after the opening, in the root mean square; *growth* is that factor.
*h·max|λ|²* is the largest of all steps at h = 1: the explicit diffusion is stable while it is at most 2, the implicit
one always.

| steps | weights | statistics | architecture | h·max\\|λ\\|² | bounded to h = | growth at h = 1 | h = {last:g} |
|--:|:--|:--|:--|--:|--:|--:|--:|
{rows}

![growth against step size](stability.png)

Made by `{command}`.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where to write it."""

    steps_per_block: tuple[int, ...] = (4, 16, 64)
    """Steps in each block; training 64 takes 14 GiB of memory."""
    step_sizes: tuple[float, ...] = tuple(round(10 ** (i / 4 - 1), 3) for i in range(13))
    """Values of h, 1 among them."""
    epochs: int = 5
    """Of training, recipe paper."""
    images: int = 64
    """How many the features are taken of."""
    seed: int = 0
    """Of weights and training."""
    workdir: Path = Path("runs/stability")
    """Where the trained networks are."""
    out_dir: Path = Path("experiments/results")
    """Folder of the three files."""


def main(config: Config) -> int:
    """Train what is not trained, measure, write the three files, print the table.

    Returns:
        The exit status of training: 3 if the loss of any network was no longer finite, another as soon as one has it.
    """
    from experiments.common import training
    from experiments.common.recipes import RECIPES

    if sorted(set(config.step_sizes)) != list(config.step_sizes) or 1.0 not in config.step_sizes:
        raise ValueError(f"--step-sizes must ascend and hold 1, that of training; got {config.step_sizes}")
    told = shown(config, "workdir", "out_dir")
    rows: list[dict[str, Any]] = []
    diverged = 0
    for steps in config.steps_per_block:
        for architecture in ("explicit_rd", "implicit_rd"):
            run = TrainConfig(
                architecture=architecture,
                steps_per_block=steps,
                epochs=config.epochs,
                seed=config.seed,
                workdir=config.workdir / f"{architecture}-{steps}steps-{config.epochs}epochs-seed{config.seed}",
            )
            if finished(run, dataclasses.asdict(RECIPES[run.recipe])) is None and (code := training.run(run)):
                if code == entry.DIVERGED:
                    diverged = code
                    continue
                return code
            rows += [{**row, "flags": told} for row in measure(run, config.step_sizes, config.images)]
            write_results(config.out_dir / "stability", rows, markdown(rows))
            draw(rows, config.out_dir / "stability.png")
    if rows:
        entry.show(markdown(rows))
    return diverged


def measure(run: TrainConfig, step_sizes: Sequence[float], images: int) -> list[dict[str, Any]]:
    """Three lines: the growth of the features at each h, with the initial weights, and with the trained ones twice.

    Args:
        run: a finished one.
        step_sizes: values of h.
        images: how many.
    """
    import jax

    from experiments.common import runs
    from experiments.common.provenance import provenance
    from lowcost.nn.stability import stability_report

    ready, state = runs.reopen(run.directory(), run.data_dir)
    grow = jax.jit(partial(growth, ready.net), static_argnames="by_batch")
    some = ready.dataset.train.images[:images] / 255
    rows = []
    for weights, statistics, variables in (
        ("initial", "of the batch", ready.initial_state().variables),
        ("trained", "of the batch", state.variables),
        ("trained", "of training", state.variables),
    ):
        report = stability_report(ready.net, variables, some.shape[1:])
        grown = [float(grow(h, variables, some, by_batch=statistics == "of the batch")) for h in step_sizes]
        rows.append(
            {
                "steps_per_block": run.steps_per_block,
                "architecture": run.architecture,
                "weights": weights,
                "statistics": statistics,
                "epochs": run.epochs,
                "seed": run.seed,
                "images": images,
                **provenance(),
                "stiffness": max(layer.stiffness for layer in report.layers if layer.stiffness is not None),
                "h": list(step_sizes),
                "growth": [g if math.isfinite(g) else None for g in grown],
            }
        )
    return rows


def changed(net: Any, h: Any) -> Any:
    """The same network with another time step."""
    return net.clone(step=partial(net.step, h=h))


def growth(net: Any, h: Any, variables: Any, images: Any, *, by_batch: bool) -> Any:
    """The root mean square of the features, largest over all steps, over that after the opening; ∞ where one is NaN.

    Args:
        net, variables, images: the network on [B, *grid, C].
        h: the time step, in place of the network's own.
        by_batch: normalise as in training.
    """
    import jax.numpy as jnp

    _, kept = changed(net, h).apply(
        variables,
        jnp.asarray(images, jnp.float32),
        train=by_batch,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, method: (
            method == "__call__" and ("_step" in (module.name or "") or module.name == "opening")
        ),
    )
    sizes = {
        name: jnp.sqrt(jnp.mean(outputs["__call__"][0] ** 2))
        for name, outputs in kept["intermediates"].items()
        if "__call__" in outputs
    }
    opening = sizes.pop("opening")
    ratio = jnp.max(jnp.stack(list(sizes.values()))) / opening
    return jnp.where(jnp.isnan(ratio), jnp.inf, ratio)


def bounded_up_to(row: dict[str, Any]) -> float | None:
    """The largest h before the first at which the features outgrow the limit; None where it is the first."""
    last = None
    for h, growth in zip(row["h"], row["growth"], strict=True):
        if growth is None or growth > LIMIT:
            break
        last = h
    return last


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    first = rows[0]
    sizes = first["h"]

    def shown(growth: float | None) -> str:
        return "overflow" if growth is None else f"{growth:.3g}"

    def line(row: dict[str, Any]) -> str:
        at = dict(zip(row["h"], row["growth"], strict=True))
        largest = bounded_up_to(row)
        bounded = "none" if largest is None else f"{largest:g}" + (" (all)" if largest == sizes[-1] else "")
        return (
            f"| {row['steps_per_block']} | {row['weights']} | {row['statistics']} | {row['architecture']} "
            f"| {row['stiffness']:.3g} | {bounded} | {shown(at[1.0])} | {shown(row['growth'][-1])} |"
        )

    return TEMPLATE.format(
        rows="\n".join(map(line, rows)),
        first=sizes[0],
        last=sizes[-1],
        count=len(sizes),
        limit=LIMIT,
        command=f"python -m experiments.stability {first['flags']}".strip(),
        **{key: first[key] for key in ("images", "epochs", "seed")},
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Growth against h: a panel for each depth; what overflows float32 leaves the picture at its top."""
    from matplotlib.figure import Figure

    panels = sorted({row["steps_per_block"] for row in rows})
    figure = Figure(figsize=(max(7, 4 * len(panels)), 4.6), layout="constrained")
    top = 1e8
    styles = {("initial", "of the batch"): "--", ("trained", "of the batch"): "-", ("trained", "of training"): ":"}
    for axes, steps in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for row in rows:
            if row["steps_per_block"] == steps:
                axes.loglog(
                    row["h"],
                    [min(math.inf if g is None else g, 10 * top) for g in row["growth"]],
                    color=STYLES[row["architecture"]]["color"],
                    linestyle=styles[row["weights"], row["statistics"]],
                    label=f"{row['architecture']}, {row['weights']}, statistics {row['statistics']}",
                )
        axes.set(title=f"{steps} steps a block", xlabel="h", ylim=(0.5, top))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2)
    figure.supylabel("largest features of any step, relative to the opening's")
    save_figure(figure, path, dpi=110)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
