"""Small perturbations of trained networks, and the bounds on what they can do (Section 4's claim, measured).

Rounded and noisy weights, noisy and blurred images, a larger time step; and how a perturbation of the images grows from
layer to layer. Writes robustness.md, robustness.jsonl and robustness.png.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = """# Trained networks under small perturbations

Accuracy on all test images in percent, of the weights or images as they are and as they are disturbed. Weights: rounded
to so many bits (each array on its own uniform grid) or to bfloat16; with normal noise of so many percent of each
array's root mean square. Images: with normal noise, or blurred by a Gaussian, of so many grey levels of 255 or pixels.
h: the time step, multiplied after training. Noise is drawn once, with seed {seed}.

{accuracies}

What becomes of the logits, as the mean over {some} test images of ‖change‖ / ‖logits‖, and the bound on it. For images
that is the network's Lipschitz bound times the change of the image; for weights Σ_k ‖f'_k(y_k) − f_k(y_k)‖ Π_(j>k) L'_j
over the layers f_k, with the features y_k as they are and the Lipschitz bounds L'_j of the changed layers. For h it is
the largest amplification R = max|R(h|λ|²)| of any step's linear part, which is stable up to 1.

{bounds}

How a change of the images grows: ‖difference‖ / ‖features‖ after each layer, and the share of the layers' Lipschitz
bounds that is reached, for noise of {noise:g} grey levels.

![growth through depth](robustness.png)

Made by `python -m experiments.robustness {workdirs}`.
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to disturb, and where to write it."""

    workdirs: tuple[Path, ...] = ()
    """Work directories of finished runs; all under runs/ when not given."""
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
    from rich.console import Console
    from rich.markdown import Markdown

    workdirs = config.workdirs or tuple(sorted(path.parent for path in Path("runs").glob("**/result.json")))
    if not workdirs:
        raise ValueError("there is no finished run under runs/; train one, or name its work directory")
    rows: list[dict[str, Any]] = []
    for workdir in workdirs:
        for row in measure(workdir, config):
            rows.append({"run": workdir.name, "workdir": str(workdir), **row})
            print(f"{workdir.name}: {row['kind']} {row['strength']:g}: {row['accuracy']:.2%}", flush=True)
        config.out_dir.mkdir(parents=True, exist_ok=True)
        (config.out_dir / "robustness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (config.out_dir / "robustness.md").write_text(markdown(rows))
        draw(rows, config.out_dir / "robustness.png")
    Console().print(Markdown(markdown(rows)))
    return 0


def measure(workdir: Path, config: Config) -> Iterator[dict[str, Any]]:
    """A line for the network as it is, and one for each perturbation."""
    import numpy as np

    from experiments import setup
    from experiments.stability import changed
    from lowcost.nn.stability import stability_report

    ready, state = setup.reopen(workdir, config.data_dir)
    if ready.config.seeds > 1:
        raise ValueError(f"{workdir} holds {ready.config.seeds} networks; disturb runs of a single seed")
    net, variables, test = ready.net, state.variables, ready.dataset.test
    images, labels = test.images / np.float32(255), test.labels
    shape, some = images.shape[1:], images[: config.images]
    base = {
        "architecture": ready.config.architecture,
        "width": ready.config.width,
        "dataset": ready.dataset.name,
        "seed": config.seed,
        "images": len(some),
    }
    predict = _predictor(ready.mesh, ready.config.batch_size)
    report = stability_report(net, variables, shape)
    clean = features(net, variables, some)
    logits = clean["classifier"]

    def row(kind: str, strength: float, net: Any, variables: Any, images: Any, **more: Any) -> dict[str, Any]:
        accuracy = float(np.mean(predict(net, variables, images).argmax(-1) == labels))
        there = features(net, variables, images[: config.images])
        change = _norms(there["classifier"] - logits) / _norms(logits)
        return {
            **base,
            "kind": kind,
            "strength": strength,
            "accuracy": accuracy,
            "change": float(change.mean()),
            **more,
        }

    yield row("as it is", 0, net, variables, images)
    for kind, strength, disturbed in disturbed_weights(variables["params"], config):
        there = {**variables, "params": disturbed}
        yield row(kind, strength, net, there, images, bound=weights_bound(net, variables, there, some, logits))
    for kind, strength, disturbed in disturbed_images(images, config):
        distance = _norms(disturbed[: len(some)] - some)
        there = features(net, variables, disturbed[: len(some)])
        yield row(
            kind,
            strength,
            net,
            variables,
            disturbed,
            bound=float(np.mean(report.lipschitz * distance / _norms(logits))),
            layers=list(there),
            differences=[float(np.mean(_norms(there[name] - clean[name]) / _norms(clean[name]))) for name in there],
            ratios=[float(np.max(_norms(there[name] - clean[name]) / distance)) for name in there],
            lipschitz=list(np.cumprod([layer.lipschitz for layer in report.layers])),
        )
    if base["architecture"] in ("explicit_rd", "implicit_rd", "circulant_rd", "implicit_circulant_rd"):
        for factor in config.steps:
            other = changed(net, factor * ready.config.h)
            layers = stability_report(other, variables, shape).layers
            largest = max(max(map(abs, layer.amplification)) for layer in layers if layer.amplification)
            yield row("h times", factor, other, variables, images, bound=largest)


def features(net: Any, variables: Any, images: Any) -> dict[str, Any]:
    """What comes out of each layer at evaluation, in order; the last is "classifier", the logits."""
    import jax.numpy as jnp
    import numpy as np

    _, kept = net.apply(
        variables,
        jnp.asarray(images),
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: method == "__call__" and len(module.path) == 1,
    )
    outputs = {name: value["__call__"][0] for name, value in kept["intermediates"].items() if name != "__call__"}
    from lowcost.nn.network import bound_layers

    order = [layer.name for layer in bound_layers(net, variables, images.shape[1:])]
    return {name: np.asarray(outputs[name], np.float32) for name in order}


def weights_bound(net: Any, variables: Any, disturbed: Any, images: Any, logits: Any) -> float:
    """Σ_k ‖f'_k(y_k) - f_k(y_k)‖ Π_{j>k} L'_j / ‖logits‖, the mean over the images."""
    import inspect

    import jax.numpy as jnp
    import numpy as np

    from lowcost.nn.network import bound_layers
    from lowcost.nn.stability import stability_report

    outputs = features(net, variables, images)
    y, total = images, np.zeros(len(images))
    report = stability_report(net, disturbed, images.shape[1:])
    for layer, bounds in zip(bound_layers(net, disturbed, images.shape[1:]), report.layers, strict=True):
        takes_train = "train" in inspect.signature(type(layer.module).__call__).parameters
        there = layer.module(jnp.asarray(y), **({"train": False} if takes_train else {}))
        total = bounds.lipschitz * total + _norms(np.asarray(there) - outputs[layer.name])
        y = outputs[layer.name]
    return float(np.mean(total / _norms(logits)))


def disturbed_weights(params: Any, config: Config) -> Iterator[tuple[str, float, Any]]:
    """(kind, strength, weights)."""
    import jax
    import jax.numpy as jnp

    def rounded(w: jax.Array, bits: int) -> jax.Array:
        step = jnp.max(jnp.abs(w)) / (2 ** (bits - 1) - 1)
        return jnp.round(w / step) * step

    yield "bfloat16", 16, jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params)
    for bits in config.bits:
        yield "bits", bits, jax.tree.map(lambda w, bits=bits: rounded(w, bits), params)
    leaves, structure = jax.tree.flatten(params)
    noise = [
        jax.random.normal(key, w.shape) * jnp.sqrt(jnp.mean(w**2))
        for key, w in zip(jax.random.split(jax.random.key(config.seed), len(leaves)), leaves, strict=True)
    ]
    for percent in config.weight_noise:
        noisy = [w + percent / 100 * n for w, n in zip(leaves, noise, strict=True)]
        yield "weight noise", percent, jax.tree.unflatten(structure, noisy)


def disturbed_images(images: Any, config: Config) -> Iterator[tuple[str, float, Any]]:
    """(kind, strength, images in [0, 1])."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(config.seed).standard_normal(images.shape, np.float32)
    for level in config.image_noise:
        yield "image noise", level, np.clip(images + np.float32(level / 255) * noise, 0, 1)
    for pixels in config.blur:
        sigma = (0, *(pixels,) * (images.ndim - 2), 0)
        yield "blur", pixels, gaussian_filter(images, sigma, mode="reflect")


def _predictor(mesh: Any, batch_size: int) -> Callable[[Any, Any, Any], Any]:
    """(net, variables, images) → logits of all images, batch by batch."""
    import jax
    import numpy as np

    from lowcost.train.mesh import over_batch

    apply = jax.jit(lambda net, variables, images: net.apply(variables, images, train=False), static_argnums=0)

    def predict(net: Any, variables: Any, images: Any) -> Any:
        short = -len(images) % batch_size
        padded = np.concatenate([images, images[:1].repeat(short, 0)]) if short else images
        batches = padded.reshape(-1, batch_size, *images.shape[1:])
        logits = [np.asarray(apply(net, variables, jax.device_put(x, over_batch(mesh)))) for x in batches]
        return np.concatenate(logits)[: len(images)]

    return predict


def _norms(x: Any) -> Any:
    """‖x_b‖ of each image."""
    import numpy as np

    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=tuple(range(1, x.ndim))))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    kinds = list(dict.fromkeys((row["kind"], row["strength"]) for row in rows))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    by = {(row["run"], row["kind"], row["strength"]): row for row in rows}

    def table(cell: Callable[[dict[str, Any]], str], kinds: Sequence[tuple[str, float]]) -> str:
        head = ["| perturbation |" + "".join(f" {run} |" for run in runs), "|:--|" + "--:|" * len(runs)]
        for kind, strength in kinds:
            cells = (by.get((run, kind, strength)) for run in runs)
            name = kind if kind in ("as it is", "bfloat16") else f"{kind} {strength:g}"
            head.append(f"| {name} |" + "".join(f" {cell(row) if row else ''} |" for row in cells))
        return "\n".join(head)

    return TEMPLATE.format(
        accuracies=table(lambda row: f"{100 * row['accuracy']:.2f}", kinds),
        bounds=table(
            lambda row: (
                f"{row['change']:.2g} ≤ {row['bound']:.2g}"
                if row["kind"] != "h times"
                else f"{row['change']:.2g}, R {row['bound']:.3g}"
            ),
            [k for k in kinds if k[0] != "as it is"],
        ),
        some=rows[0]["images"],
        seed=rows[0]["seed"],
        noise=_shown(rows),
        workdirs=" ".join(dict.fromkeys(row["workdir"] for row in rows)),
    )


def _shown(rows: list[dict[str, Any]]) -> float:
    """The noise whose growth is drawn."""
    return min(row["strength"] for row in rows if row["kind"] == "image noise")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The relative difference after each layer, and the share of the bound that is reached."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        if row["kind"] == "image noise" and row["strength"] == _shown(rows):
            depth = range(1, len(row["layers"]) + 1)
            left.semilogy(depth, row["differences"], marker=".", label=row["run"])
            right.semilogy(depth, [r / b for r, b in zip(row["ratios"], row["lipschitz"], strict=True)], marker=".")
    left.set(xlabel="layer", ylabel="‖difference‖ / ‖features‖")
    right.set(xlabel="layer", ylabel="largest ‖difference‖ / ‖change of the image‖, over its bound")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    import tyro

    from experiments.huge_pages import use_huge_pages

    use_huge_pages()
    try:
        sys.exit(main(tyro.cli(Config, prog="python -m experiments.robustness", description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
