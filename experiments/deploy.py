"""What a trained network is outside of training: size, operations, latency, memory and accuracy of every form of it.

    python -m experiments.deploy WORKDIR...

The first run is measured in full; of each the exported files are compared with the network on all test images.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments import predict
from experiments.common import entry
from experiments.common.entry import in_a_process
from experiments.common.files import write_page, write_results, write_whole
from experiments.common.flags import shown
from experiments.common.provenance import peak_memory, provenance

TEMPLATE = """# A trained network outside of training

{network}, {weights:,} weights, on {dataset} ({shape}). All rows from one run; {device}.

{forms}

File: what `experiments.export` writes. Operations: floating point operations of one image as XLA counts them in the
program before it is optimised, of an ONNX file those of the same operations in JAX. Latency: of one image, median of
{rounds} interleaved calls, compilation apart. Memory: largest resident size of a process that loads this form and
nothing else and classifies one image. Accuracy: of all {images:,} test images. Truncated: each implicit step as the
smallest stencil that loses at most {tolerance:g} of its features in the ℓ¹ norm: {windows}. On the first {singles} test
images its logits lie at most {observed:.2g} from the exact ones in the Euclidean norm; the certificate says at most
{bound:.1e}, the Lipschitz bounds of all layers multiplied, of which ReLU and the data leave little: at most
{ratio:.1e} of it is seen. Layer by layer at most {layer_ratio:.2g} of the bound is seen.

## The files say what the networks say

Largest difference of a logit from the network's over all test images, in batches of 37 and one by one
(the first {singles}); and how many predictions differ. Last: operations of the folded network over the network's.

{agreement}

Made by `python -m experiments.deploy {workdirs} {flags}`.
"""

MARKS = ("<!-- table -->", "<!-- end -->")
"""Between these a page has the tables."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, and where to write."""

    workdirs: tyro.conf.Positional[tuple[Path, ...]]
    """Work directories of finished runs; the first is measured in full."""
    data_dir: Path | None = None
    """Where the pictures are now, if no longer where they were."""
    images: str = ""
    """What a folder's pictures are, in words."""
    tolerance: float = 0.01
    """Of the truncated form."""
    rounds: int = 50
    """Timed calls of each form."""
    singles: int = 100
    """Test images that are also classified one by one."""
    out: Path = Path("experiments/results/deploy")
    """Writes OUT.jsonl and OUT.md."""
    page: Path | None = None
    """Set the tables between the two marks of this page too: docs/deploy.md."""


def main(config: Config) -> int:
    """Measure, write the two files, print the page."""
    for name in ("rounds", "singles"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(config, name)}")
    if not config.workdirs:
        raise ValueError("name the work directory of a finished run")
    if config.page is not None and MARKS[0] not in config.page.read_text("utf-8"):
        raise ValueError(f"{config.page} has no line {MARKS[0]!r} to set the tables in")
    rows = [*forms(config), *(agreement(workdir, config) for workdir in config.workdirs)]
    write_results(config.out, rows, markdown(rows))
    if config.page is not None:
        write_page(config.page, between_marks(config.page.read_text("utf-8"), rows))
    entry.show(markdown(rows))
    return 0


def forms(config: Config) -> list[dict[str, Any]]:
    """A line for each form of the first network."""
    import jax

    from experiments.common.timing import interleave
    from lowcost.nn.operations import Depthwise

    workdir = config.workdirs[0]
    run, exact, truncated, test = _load(workdir, config)
    images = test.images.astype(np.float32) / 255
    with tempfile.TemporaryDirectory() as folder:
        exported = {"StableHLO": exact, "ONNX, exact": exact, "ONNX, truncated": truncated, "ONNX, 8 bit": exact}
        files = _write(exported, run, Path(folder))
        calls: dict[str, Callable[[Any], Any]] = {
            "JAX": jax.jit(lambda images: run.net.apply(run.variables, images)),
            "JAX, folded": jax.jit(exact),
            **{name: predict.load(predict.PredictConfig((), model=file)).logits for name, file in files.items()},
        }
        first = images[:1]
        steps: dict[str, Callable[[], Any]] = {name: partial(_answer, call, first) for name, call in calls.items()}
        seconds = interleave(steps, config.rounds)
        counted = {"JAX": calls["JAX"], "ONNX, truncated": jax.jit(truncated)}
        counts = {name: _operations(call, first) for name, call in counted.items()}
        folded = _operations(calls["JAX, folded"], first)
        rows = []
        for name, call in calls.items():
            file = files.get(name)
            logits = _in_batches(call, images, 100)
            rows.append(
                {
                    "form": name,
                    "file_bytes": None if file is None else file.stat().st_size,
                    "operations": counts.get(name, folded),
                    "milliseconds": 1000 * seconds[name],
                    "peak_mib": in_a_process(_peak, name, str(file or workdir)),
                    "accuracy": float((logits.argmax(-1) == test.labels).mean()),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    windows = [
        "x".join(map(str, operation.stencil.shape[:-1]))
        for layer in truncated.layers
        for operation in layer.operations
        if isinstance(operation, Depthwise) and operation.dropped is not None
    ]
    about = {
        "kind": "form",
        "flags": shown(config, "workdirs", "data_dir", "out"),
        "workdir": str(workdir),
        "network": f"{run.config.architecture} {run.config.width}",
        "weights": sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        "dataset": _words(run, config),
        "image_shape": run.image_shape,
        "images": len(images),
        "rounds": config.rounds,
        "tolerance": config.tolerance,
        "windows": windows,
        **provenance(),
        **_certificate(exact, truncated, images[: config.singles]),
    }
    return [{**about, **row} for row in rows]


def agreement(workdir: Path, config: Config) -> dict[str, Any]:
    """How far the files' logits are from the network's."""
    import jax

    run, exact, _, test = _load(workdir, config)
    images = test.images.astype(np.float32) / 255
    network = jax.jit(lambda images: run.net.apply(run.variables, images))
    want = _in_batches(network, images, 100)
    row: dict[str, Any] = {
        "kind": "agreement",
        "workdir": str(workdir),
        "network": f"{run.config.architecture} {run.config.width}",
        "dataset": _words(run, config),
        "images": len(images),
        "singles": min(config.singles, len(images)),
        "operations": _operations(jax.jit(exact), images[:1]) / _operations(network, images[:1]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, file in _write({"StableHLO": exact, "ONNX, exact": exact}, run, Path(folder)).items():
            call = predict.load(predict.PredictConfig((), model=file)).logits
            got, single = _in_batches(call, images, 37), _in_batches(call, images[: config.singles], 1)
            row[name] = {
                "difference": float(max(abs(got - want).max(), abs(single - want[: len(single)]).max())),
                "predictions": int((got.argmax(-1) != want.argmax(-1)).sum()),
            }
    print(json.dumps(row), flush=True)
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("form", "agreement")}
    first, reference = kinds["form"][0], kinds["form"][0]["milliseconds"]
    table = "| form | file | operations | latency | the network's over it | memory | accuracy |\n"
    table += "|:--|--:|--:|--:|--:|--:|--:|\n"
    for row in kinds["form"]:
        size = "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1000:,.0f} kB"
        table += (
            f"| {row['form']} | {size} | {row['operations'] / 1e6:.1f} M | {row['milliseconds']:.2f} ms "
            f"| {reference / row['milliseconds']:.2f} | {row['peak_mib']:,.0f} MiB | {100 * row['accuracy']:.2f} % |\n"
        )
    names = ("ONNX, exact", "StableHLO")
    agree = "| network | data | images | " + " | ".join(f"{name} | predictions" for name in names) + " | operations |\n"
    agree += "|:--|:--|--:|" + "--:|--:|" * len(names) + "--:|\n"
    for row in kinds["agreement"]:
        cells = " | ".join(f"{row[name]['difference']:.1e} | {row[name]['predictions']}" for name in names)
        agree += f"| {row['network']} | {row['dataset']} | {row['images']:,} | {cells} | {row['operations']:.2f} |\n"
    return TEMPLATE.format(
        **{**first, "windows": ", ".join(first["windows"]) or "none"},
        shape="x".join(map(str, first["image_shape"])),
        forms=table.strip(),
        agreement=agree.strip(),
        singles=kinds["agreement"][0]["singles"],
        workdirs=" ".join(row["workdir"] for row in kinds["agreement"]),
    )


def between_marks(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with what `markdown` says, but for its title, where its marks stand."""
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    _, tables = markdown(rows).split("\n", 1)
    return f"{before}{MARKS[0]}\n{tables}{MARKS[1]}{after}"


def _words(run, config: Config) -> str:
    return config.images or run.config.dataset if run.config.dataset == "folder" else run.config.dataset


def _load(workdir: Path, config: Config):
    """The run, its folded and its truncated network, its test images."""
    from experiments.common import runs
    from lowcost import data, deploy

    run = runs.trained(workdir)
    runs.check_finished(workdir, run.step, run.steps)
    dataset = data.load(
        run.config.dataset,
        data_dir=config.data_dir or run.config.data_dir,
        image_size=run.config.image_size,
        cache_dir=runs.image_cache(workdir),
    )
    runs.check_data(workdir, dataset, {"classes": list(run.classes), "image_shape": list(run.image_shape)})
    exact = deploy.fold(run.net, run.variables, run.image_shape)
    return run, exact, deploy.truncate(exact, config.tolerance), dataset.test


def _write(forms, run, folder: Path) -> dict[str, Path]:
    """Folded networks by the form's name, exported as `experiments.export` writes them."""
    from experiments.export import ExportConfig, serialized

    told = {"classes": json.dumps(run.classes), "image_shape": json.dumps(run.image_shape)}
    files = {}
    for i, (name, folded) in enumerate(forms.items()):
        kind: Literal["onnx", "stablehlo"] = "stablehlo" if name == "StableHLO" else "onnx"
        how = ExportConfig(Path(), folder / f"{i}.{kind}", kind, bits=8 if name == "ONNX, 8 bit" else 32)
        for file, content in serialized(folded, told, how).items():
            write_whole(file, content)
        files[name] = how.out
    return files


def _certificate(exact, truncated, images) -> dict[str, float]:
    """What truncation does to these images, and the bounds on it, of the network and of each layer alone."""
    import jax

    from lowcost.deploy import certified
    from lowcost.nn.operations import run

    @jax.jit
    def compare(images):
        result = certified(truncated, images)
        y, ratios = images, []
        for layer, cut in zip(exact.layers, truncated.layers, strict=True):
            if layer.operations != cut.operations:
                change = run(cut.operations, y) - run(layer.operations, y)
                bound = certified(dataclasses.replace(truncated, layers=(cut,), image_shape=y.shape[1:]), y).layers[
                    layer.name
                ]
                norms = (change**2).sum(range(1, change.ndim)) ** 0.5
                ratios.append((norms / bound.clip(1e-6 * (y**2).sum() ** 0.5)).max())
            y = run(cut.operations, y)
        return result.error, ((result.logits - exact(images)) ** 2).sum(-1) ** 0.5, ratios

    bounds, observed, ratios = (np.asarray(x) for x in compare(images))
    return {
        "observed": float(observed.max()),
        "bound": float(bounds.max()),
        "ratio": float((observed / np.maximum(bounds, 1e-12)).max()) if bounds.max() else 0.0,
        "layer_ratio": float(max(ratios, default=0.0)),
    }


def _operations(call, images) -> float:
    return call.lower(images).cost_analysis()["flops"]


def _answer(call, images) -> np.ndarray:
    return np.asarray(call(images))


def _in_batches(call, images, size: int) -> np.ndarray:
    return np.concatenate([_answer(call, images[i : i + size]) for i in range(0, len(images), size)])


def _peak(form: str, path: str) -> float:
    """MiB of a process that classifies one image."""
    call: Callable[[Any], Any]
    if form.startswith("JAX"):
        import jax

        from experiments.common import runs
        from lowcost import deploy

        run = runs.trained(Path(path))
        shape = run.image_shape
        folded = form == "JAX, folded" and deploy.fold(run.net, run.variables, shape)
        call = jax.jit(folded or partial(run.net.apply, run.variables))
    else:
        call, _, shape = predict.load(predict.PredictConfig((), model=Path(path)))
    np.asarray(call(np.zeros((1, *shape), np.float32)))
    return peak_memory() / 2**20


if __name__ == "__main__":
    entry.run(main, Config)
