"""Compares the exported forms of a trained network: size, operations, latency, memory and accuracy.

    python -m experiments.deploy WORKDIR...

The first run is measured in every form. For each run, the exported files are compared with the network on all test
images.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import export
from experiments.common import classifiers, datasets, entry, peak_memory, runs, timing
from experiments.common.config import check_counts, values
from experiments.common.files import write_whole
from experiments.common.results import Results, Row, page, provenance
from lowcost import deploy
from lowcost.nn import operations
from lowcost.scaling import to_unit_range
from lowcost.train.state import count_weights

FILES: dict[str, dict[str, Any]] = {
    "StableHLO": {"format": "stablehlo"},
    "ONNX, exact": {},
    "ONNX, truncated": {},
    "ONNX, 8-bit weights": {"bits": 8},
    "ONNX, 8 bit": {"bits": 8, "activations": 8},
}
"""The options of `experiments.export` for each form that is a file."""
COMPARED = ("ONNX, exact", "StableHLO")
"""The files that are compared with the network."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to measure, and where to write the figures."""

    workdirs: tyro.conf.Positional[tuple[Path, ...]]
    """Work directories of finished runs; the first is measured in every form."""
    data_dir: Path | None = None
    """Folder of the images, if it is no longer the one of training."""
    images: str = ""
    """folder, arrays: description of the images, for the table."""
    tolerance: float = 0.01
    """Share of the features that the truncated form may lose."""
    rounds: int = 50
    """Timed calls of each form."""
    singles: int = 100
    """Test images that are also classified one by one."""
    out: Path = Path("runs/results/deploy")
    """Writes OUT.md and OUT.jsonl."""


def main(config: Config) -> None:
    """Measures, writes both files, prints the page."""
    check_counts(config, "rounds", "singles")
    if not config.workdirs:
        raise ValueError("WORKDIRS must name at least one finished run, got none; train a network first")
    subjects = [Subject(workdir, config) for workdir in config.workdirs]
    results = Results(config, markdown, without=("workdirs", "data_dir"))
    results.add([*subjects[0].forms(), *(subject.agreement() for subject in subjects)])
    results.show()


class Subject:
    """A finished run with its folded and truncated network and its test images."""

    def __init__(self, workdir: Path, config: Config):
        run = self.run = runs.trained(workdir, to_the_end=True)
        if run.task != "classes":
            raise ValueError(f"{workdir} must hold a network for classes, got {run.task}; choose another")
        if config.images and run.config.dataset not in ("folder", "arrays"):
            raise ValueError(f"--images is for runs on folder or arrays, got one on {run.config.dataset}; leave it out")
        self.workdir, self.config = workdir, config
        dataset = datasets.data_again(workdir, run.config, config.data_dir)
        self.images, self.labels = to_unit_range(dataset.test.images), dataset.test.labels
        self.network = jax.jit(partial(run.net.apply, run.variables))
        self.exact = deploy.fold(run.net, run.variables, run.image_shape)
        self.truncated = deploy.truncate(self.exact, config.tolerance)
        self.quantized = export.quantized(self.exact, dataset)
        network = f"{run.config.architecture} {run.config.width_name}"
        self.about = {"workdir": str(workdir), "network": network, "dataset": config.images or run.config.dataset}

    def forms(self) -> Iterator[Row]:
        """Yields one row for each form of the network."""
        config, first, folded = self.config, self.images[:1], jax.jit(self.exact)
        counted = {"JAX": self.network, "ONNX, truncated": jax.jit(self.truncated)}
        about = {
            "kind": "form",
            **self.about,
            "weights": count_weights(self.run.variables["params"]),
            "image_shape": self.run.image_shape,
            "images": len(self.images),
            **values(config, "rounds", "tolerance"),
            "windows": _windows(self.truncated),
            **provenance(),
            **_certificate(self.exact, self.truncated, self.images[: config.singles]),
        }
        with tempfile.TemporaryDirectory() as folder:
            files = self.write(FILES, Path(folder))
            calls: dict[str, Callable[[Any], Any]] = {"JAX": self.network, "JAX, folded": folded}
            calls |= {name: _loaded(file) for name, file in files.items()}
            steps = {name: partial(_in_batches, call, first, 1) for name, call in calls.items()}
            seconds = timing.interleave(steps, config.rounds)
            for name, call in calls.items():
                logits = _in_batches(call, self.images, 100)
                row = {
                    "form": name,
                    "file_bytes": files[name].stat().st_size if name in files else None,
                    "operations": _operations(counted.get(name, folded), first),
                    "milliseconds": 1000 * seconds[name],
                    "peak_mib": peak_memory.of_form(name, files.get(name, self.workdir)),
                    "accuracy": float((logits.argmax(-1) == self.labels).mean()),
                }
                print(json.dumps(row), flush=True)
                yield {**about, **row}

    def agreement(self) -> Row:
        """Returns the differences of the files' logits from the network's."""
        images, singles = self.images, self.images[: self.config.singles]
        expected = _in_batches(self.network, images, 100)
        row: Row = {
            "kind": "agreement",
            **self.about,
            "images": len(images),
            "singles": len(singles),
            "operations": _operations(jax.jit(self.exact), images[:1]) / _operations(self.network, images[:1]),
        }
        with tempfile.TemporaryDirectory() as folder:
            for name, file in self.write(COMPARED, Path(folder)).items():
                call = _loaded(file)
                batches, single = _in_batches(call, images, 37), _in_batches(call, singles, 1)
                differences = abs(batches - expected).max(), abs(single - expected[: len(single)]).max()
                predictions = int((batches.argmax(-1) != expected.argmax(-1)).sum())
                row[name] = {"difference": float(max(differences)), "predictions": predictions}
        print(json.dumps(row), flush=True)
        return row

    def write(self, names: Iterable[str], folder: Path) -> dict[str, Path]:
        """Writes the files of these forms as `experiments.export` does; returns name → file."""
        files = {}
        for name in names:
            files[name] = folder / f"{name}.{FILES[name].get('format', 'onnx')}"
            options = export.ExportConfig(self.workdir, files[name], **FILES[name])
            folded = {"ONNX, truncated": self.truncated, "ONNX, 8 bit": self.quantized}.get(name, self.exact)
            for file, content in export.serialized(folded, self.run.metadata(), options).items():
                write_whole(file, content)
        return files


def markdown(rows: list[Row], name: str = "deploy") -> str:
    """Returns the page; `name` is that of its files."""
    forms, agreement = ([row for row in rows if row["kind"] == kind] for kind in ("form", "agreement"))
    first = forms[0]

    def cells(row: Row) -> Row:
        return row | {
            "file": f"{row['file_bytes'] / 1000:,.0f} kB" if row["file_bytes"] else None,
            "megaflop": row["operations"] / 1e6,
            "ratio": first["milliseconds"] / row["milliseconds"],
            "percent": 100 * row["accuracy"],
        }

    windows, shape = ", ".join(first["windows"]) or "no", "x".join(map(str, first["image_shape"]))
    about = {"windows": windows, "shape": shape, "singles": agreement[0]["singles"]}
    program = " ".join(["deploy", *(row["workdir"] for row in agreement)])
    return page(rows, name, program, forms=map(cells, forms), agreement=agreement, **about)


def _windows(truncated: deploy.Folded) -> list[str]:
    """The sizes of the stencils in place of implicit steps."""
    every = (operation for layer in truncated.layers for operation in layer.operations)
    cut = (x for x in every if isinstance(x, operations.Depthwise) and x.dropped is not None)
    return ["x".join(map(str, x.stencil.shape[:-1])) for x in cut]


def _certificate(exact: deploy.Folded, truncated: deploy.Folded, images: np.ndarray) -> dict[str, float]:
    """The change by truncation for these images, and its bounds: for the network and for each layer alone."""

    @jax.jit
    def compare(images):
        result, y, ratios = deploy.certified(truncated, images), images, []
        for layer, cut in zip(exact.layers, truncated.layers, strict=True):
            if layer.operations != cut.operations:
                change = operations.run(cut.operations, y) - operations.run(layer.operations, y)
                norms = (change**2).sum(range(1, change.ndim)) ** 0.5
                ratios.append((norms / result.layers[layer.name].clip(1e-6 * (y**2).sum() ** 0.5)).max())
            y = operations.run(cut.operations, y)
        return result.error, ((result.logits - exact(images)) ** 2).sum(-1) ** 0.5, ratios

    bounds, observed, ratios = (np.asarray(x) for x in compare(images))
    return {
        "observed": float(observed.max()),
        "bound": float(bounds.max()),
        "ratio": float((observed / np.maximum(bounds, 1e-12)).max()) if bounds.max() else 0.0,
        "layer_ratio": float(max(ratios, default=0.0)),
    }


def _operations(call: Any, images: np.ndarray) -> float:
    return call.lower(images).cost_analysis()["flops"]


def _in_batches(call: Callable[[Any], Any], images: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([call(images[i : i + size]) for i in range(0, len(images), size)])


def _loaded(file: Path) -> Callable[[Any], Any]:
    return classifiers.load(model=file).logits


if __name__ == "__main__":
    entry.run(main, Config)
