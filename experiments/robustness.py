"""Small perturbations of trained networks, and the bounds on what they can do (Section 4's claim, measured).

Rounded and noisy weights, noisy and blurred images, a larger time step; and how a perturbation of the images grows from
layer to layer. Writes robustness.md, robustness.jsonl and robustness.png.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.common import entry
from experiments.common.files import save_figure, write_results
from experiments.common.flags import shown
from experiments.common.styles import STYLES
from experiments.common.workdir import Result
from lowcost.terminal import printable, warn

TEMPLATE = """# Trained networks under small perturbations

Accuracy on all test images in percent, of the weights or images as they are and as they are disturbed. Weights: rounded
to so many bits (each array on its own uniform grid) or to bfloat16; with normal noise of so many percent of each
array's root mean square. Images: with normal noise, or blurred by a Gaussian, of so many grey levels of 255 or pixels.
h: the time step, multiplied after training. Noise is drawn once, with seed {seed}.

{accuracies}

What becomes of the logits, as the mean over {some} test images, spread evenly over the set, of ‖change‖ / ‖logits‖, and
the bound on it. For images that is the network's Lipschitz bound times the change of the image; for weights
Σ_k ‖f'_k(y_k) − f_k(y_k)‖ Π_(j>k) L'_j over the layers f_k, with the features y_k as they are and the Lipschitz bounds
L'_j of the changed layers. For h it is the largest amplification R = max|R(h|λ|²)| of any step's linear part, which
is stable up to 1.

{bounds}

How a change of the images grows, for noise of {noise:g} grey levels. Left: the mean of ‖difference‖ / ‖features‖ after
each layer. Right: the largest ‖difference‖ after it over ‖difference of the images‖, as a share of the product of the
Lipschitz bounds of all layers up to it.

![growth through depth](robustness.png)

Made by `{command}`.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to disturb, and where to write it."""

    workdirs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Work directories of finished runs; all of a single seed under runs/ when not given."""
    data_dir: Path | None = None
    """Where the pictures are now, if no longer where they were."""
    bits: tuple[int, ...] = (8, 6, 5, 4)
    """To round the weights to."""
    weight_noise: tuple[float, ...] = (1, 2, 5, 10)
    """Percent of each array's root mean square."""
    image_noise: tuple[float, ...] = (2, 5, 10, 20)
    """Standard deviations in grey levels."""
    blur: tuple[float, ...] = (0.5, 1, 1.5)
    """Standard deviations in pixels."""
    steps: tuple[float, ...] = (1.5, 2, 4, 8)
    """Factors of h."""
    images: int = 64
    """How many test images the bounds are taken over."""
    seed: int = 0
    """Of the noise."""
    out_dir: Path = Path("experiments/results")
    """Folder of the three files."""


def main(config: Config) -> int:
    """Disturb every run, write the three files, print the page."""
    workdirs = config.workdirs or tuple(single_runs(Path("runs")))
    if not workdirs:
        raise ValueError("there is no finished run of a single seed under runs/; train one, or name its work directory")
    if not config.image_noise:
        raise ValueError("--image-noise must name a strength: the picture shows how the smallest grows")
    told = shown(config, "workdirs", "data_dir", "out_dir")
    rows: list[dict[str, Any]] = []
    for workdir in workdirs:
        try:
            for row in measure(workdir, config):
                rows.append({"workdir": str(workdir), "flags": told, **row})
                print(
                    f"{printable(workdir.name)}: {row['kind']} {row['strength']:g}: {row['accuracy']:.2%}", flush=True
                )
        except ValueError as error:
            if config.workdirs or (rows and rows[-1]["workdir"] == str(workdir)):  # named, or opened well enough
                raise
            warn(f"{workdir}: passed over: {error}")
            continue
        write_results(config.out_dir / "robustness", rows, markdown(rows))
        draw(rows, config.out_dir / "robustness.png")
    if not rows:
        raise ValueError("none of the runs under runs/ can be opened; train one, or name its work directory")
    entry.show(markdown(rows))
    return 0


def single_runs(directory: Path) -> Iterator[Path]:
    """The work directories of finished runs below, by name; those of several seeds are passed over with a word."""
    for path in sorted(directory.glob("**/result.json")):
        if Result(path)["seeds"] == 1:
            yield path.parent
        else:
            warn(f"{path.parent}: several seeds, passed over")


def measure(workdir: Path, config: Config) -> Iterator[dict[str, Any]]:
    """A line for the network as it is, and one for each perturbation."""
    import jax
    import numpy as np

    from experiments.common import runs
    from experiments.common.perturbations import disturbed_images, disturbed_weights, features, norms, weights_bound
    from experiments.common.provenance import provenance
    from experiments.stability import changed
    from lowcost.nn.stability import stability_report
    from lowcost.train.loop import evaluate_all, first_step
    from lowcost.train.step import make_eval_step, to_unit_range

    ready, state = runs.reopen(workdir, config.data_dir)
    if ready.config.seeds > 1:
        raise ValueError(f"{workdir} holds {ready.config.seeds} networks; disturb runs of a single seed")
    runs.check_finished(workdir, first_step(state), (ready.config.epochs or 0) * ready.steps_per_epoch)
    net, variables, labels = ready.net, state.variables, ready.dataset.test.labels
    images = to_unit_range(ready.dataset.test.images)  # floats, which evaluation uses as they are
    if not 1 <= config.images <= len(images):
        raise ValueError(f"--images must be from 1 to the {len(images)} of the test set, got {config.images}")
    chosen = np.linspace(0, len(images) - 1, config.images).astype(int)  # a folder's lie class by class
    some, shape = images[chosen], images.shape[1:]
    report, clean = stability_report(net, variables, shape), features(net, variables, some)
    size = norms(clean["classifier"])

    def row(kind: str, strength: float, there: dict[str, Any], images: Any, **changes: Any) -> dict[str, Any]:
        """changes: an eval_step in place of the network's, or variables."""
        metrics = evaluate_all(
            changes.get("eval_step", ready.eval_step),
            state.replace(average=None, **changes.get("variables", variables)),
            images,
            labels,
            batch_size=ready.config.batch_size,
            mesh=ready.mesh,
        )
        assert metrics is not None
        return {
            "architecture": ready.config.architecture,
            "width": ready.config.width,
            "dataset": ready.dataset.name,
            "seed": config.seed,
            "images": len(some),
            **provenance(),
            "kind": kind,
            "strength": strength,
            "accuracy": float(metrics["accuracy"]),
            "change": float(np.mean(norms(there["classifier"] - clean["classifier"]) / size)),
        }

    yield row("as it is", 0, clean, images)
    for kind, strength, params in disturbed_weights(variables["params"], config.bits, config.weight_noise, config.seed):
        disturbed = {**variables, "params": params}
        bound = weights_bound(net, disturbed, some, clean)
        there = features(net, disturbed, some)
        yield {**row(kind, strength, there, images, variables=disturbed), "bound": float(np.mean(bound / size))}
    for kind, strength, noisy in disturbed_images(images, config.image_noise, config.blur, config.seed):
        there = features(net, variables, noisy[chosen])
        distance = norms(noisy[chosen] - some)
        apart = {name: norms(there[name] - clean[name]) for name in clean}
        yield {
            **row(kind, strength, there, noisy),
            "bound": float(np.mean(report.lipschitz * distance / size)),
            "layers": list(clean),
            "differences": [float(np.mean(apart[name] / norms(clean[name]))) for name in clean],
            "ratios": [float(np.max(apart[name] / distance)) for name in clean],
            "lipschitz_up_to": list(np.cumprod([layer.lipschitz for layer in report.layers])),
        }
    if any(layer.amplification for layer in report.layers):  # steps in time
        for factor in config.steps:
            other = changed(net, factor * ready.config.h)
            layers = stability_report(other, variables, shape).layers
            largest = max(max(map(abs, layer.amplification)) for layer in layers if layer.amplification)
            there = features(other, variables, some)
            eval_step = jax.jit(make_eval_step(other))
            yield {**row("h times", factor, there, images, eval_step=eval_step), "amplification": largest}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    kinds = list(dict.fromkeys((row["kind"], row["strength"]) for row in rows))
    runs = _names(rows)
    by = {(row["workdir"], row["kind"], row["strength"]): row for row in rows}

    def table(cell: Callable[[dict[str, Any]], str], kinds: Sequence[tuple[str, float]]) -> str:
        head = ["| perturbation |" + "".join(f" {name} |" for name in runs.values()), "|:--|" + "--:|" * len(runs)]
        for kind, strength in kinds:
            cells = (by.get((run, kind, strength)) for run in runs)
            name = kind if kind in ("as it is", "bfloat16") else f"{kind} {strength:g}"
            head.append(f"| {name} |" + "".join(f" {cell(row) if row else ''} |" for row in cells))
        return "\n".join(head)

    return TEMPLATE.format(
        accuracies=table(lambda row: f"{100 * row['accuracy']:.2f}", kinds),
        bounds=table(
            lambda row: (
                f"{_number(row['change'])} ≤ {_number(row['bound'])}"
                if "bound" in row
                else f"{_number(row['change'])}, R {row['amplification']:.3g}"
            ),
            [k for k in kinds if k[0] != "as it is"],
        ),
        some=rows[0]["images"],
        seed=rows[0]["seed"],
        noise=_shown(rows),
        command=" ".join(["python -m experiments.robustness", *runs, rows[0]["flags"]]).strip(),
    )


def _number(x: float | None) -> str:
    """What is not finite is null in the file."""
    return "overflow" if x is None or not math.isfinite(x) else f"{x:.2g}"


def _names(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Work directory → what it is called: its last part, or all of it if another's is the same."""
    workdirs = list(dict.fromkeys(row["workdir"] for row in rows))
    last = [Path(workdir).name for workdir in workdirs]
    return {w: name if last.count(name) == 1 else w for w, name in zip(workdirs, last, strict=True)}


def _shown(rows: list[dict[str, Any]]) -> float:
    """The noise whose growth is drawn."""
    return min(row["strength"] for row in rows if row["kind"] == "image noise")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The relative difference after each layer, and the share of the bound that is reached."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    datasets, names = sorted({row["dataset"] for row in rows}), _names(rows)
    for row in rows:
        if row["kind"] == "image noise" and row["strength"] == _shown(rows):
            depth = range(1, len(row["layers"]) + 1)
            line = {"markersize": 4, "linestyle": ("-", ":", "--", "-.")[datasets.index(row["dataset"]) % 4]}
            style = line | STYLES[row["architecture"]]
            left.semilogy(depth, row["differences"], label=names[row["workdir"]], **style)
            ratios, bounds = (np.array(row[name], float) for name in ("ratios", "lipschitz_up_to"))
            right.semilogy(depth, ratios / bounds, **style)
    left.set(xlabel="layer", ylabel="‖difference‖ / ‖features‖")
    right.set(xlabel="layer", ylabel="share of the product of the bounds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=3)
    save_figure(figure, path, dpi=110)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
