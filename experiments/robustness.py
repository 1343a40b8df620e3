"""Perturbs trained networks slightly, and bounds the effect (a claim of Section 4, measured).

Rounded and noisy weights, noisy and blurred images, a larger time step; and how a perturbation of the images grows from
layer to layer.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.common import entry, perturbations, plots, runs
from experiments.common.config import values
from experiments.common.perturbations import Variables, features, norms, weights_bound, with_time_step
from experiments.common.results import Results, Row, page, provenance, table
from lowcost.nn import stability_report
from lowcost.scaling import to_unit_range
from lowcost.terminal import note, printable
from lowcost.train.step import make_eval_step

UNPERTURBED = "as it is"
"""Kind of the first row, in the files."""
STRENGTHS: dict[str, list[float]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""Strengths of each perturbation, in the units of the page; the short form takes the first one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to perturb, and where to write the figures."""

    workdirs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Work directories of finished runs. None: all runs of a single seed under runs/."""
    data_dir: Path | None = None
    """Folder of the images, if it is no longer the one of training."""
    images: int = 64
    """Number of test images for the bounds."""
    seed: int = 0
    """Seed of the noise."""
    short: bool = False
    """One strength of each perturbation."""
    out: Path = Path("runs/results/robustness")
    """Writes OUT.md, OUT.jsonl and OUT.png."""


def main(config: Config) -> None:
    """Perturbs every run, writes the three files, prints the page."""
    results = Results(config, markdown, draw, without=("workdirs", "data_dir"))
    for workdir in config.workdirs or sorted(path.parent for path in Path("runs").glob("**/result.json")):
        try:
            subject = Subject(workdir, config)
        except (ValueError, OSError) as error:
            if config.workdirs:
                raise
            note(f"{workdir}: skipped: {error}")
            continue
        rows = []
        for row in measure(subject, short=config.short):
            rows.append({"workdir": str(workdir), **row})
            print(f"{printable(workdir.name)}: {row['kind']} {row['strength']:g}: {row['accuracy']:.2%}", flush=True)
        results.add(rows)
    if not results.rows:
        raise ValueError("runs/ must hold a finished run of a single seed, got none; train one, or name its folder")
    results.show()


class Subject:
    """A trained network that is perturbed, beside its unperturbed features."""

    def __init__(self, workdir: Path, config: Config):
        self.ready, state = runs.reopen(workdir, config.data_dir, to_the_end=True)
        if self.ready.config.task != "classes":
            raise ValueError(f"{workdir} must hold a network for classes, got {self.ready.config.task}; choose another")
        if self.ready.config.seeds > 1:
            raise ValueError(f"{workdir} must hold one network, got {self.ready.config.seeds}; train a single seed")
        if self.ready.net.moments is not None:
            got = "one that standardises its input"
            raise ValueError(f"{workdir} must hold a network for images in [0, 1], got {got}; choose another")
        self.net, self.variables = self.ready.net, state.chosen
        self.images = to_unit_range(self.ready.dataset.test.images)  # floats, which evaluation takes unchanged
        if not 1 <= config.images <= len(self.images):
            raise ValueError(f"--images must be from 1 to {len(self.images)}, the test images; got {config.images}")
        self.sample = np.linspace(0, len(self.images) - 1, config.images).astype(int)  # a folder is sorted by class
        self.clean = features(self.net, self.variables, self.images[self.sample])
        self.size = norms(self.clean["classifier"])
        self.report = stability_report(self.net, self.variables, self.images.shape[1:])
        about = values(self.ready.config, "architecture", "width", "dataset")
        self.about = about | values(config, "seed", "images") | provenance()

    def row(self, kind: str, strength: float, outputs: dict[str, np.ndarray], **changes: Any) -> Row:
        """Returns a row; `changes` are images, variables or an eval_step in place of the network's own."""
        ready = self.ready._replace(eval_step=changes.get("eval_step", self.ready.eval_step))
        metrics = ready.evaluate(changes.get("variables", self.variables), changes.get("images", self.images))
        assert metrics is not None
        return {
            **self.about,
            "kind": kind,
            "strength": strength,
            "accuracy": float(metrics["accuracy"]),
            "change": float(np.mean(norms(outputs["classifier"] - self.clean["classifier"]) / self.size)),
        }

    def with_weights(self, kind: str, strength: float, params: Variables) -> Row:
        """Returns the row of perturbed weights."""
        perturbed, images = {**self.variables, "params": params}, self.images[self.sample]
        bound = weights_bound(self.net, perturbed, images, self.clean)
        row = self.row(kind, strength, features(self.net, perturbed, images), variables=perturbed)
        return {**row, "bound": float(np.mean(bound / self.size))}

    def with_images(self, kind: str, strength: float, images: np.ndarray) -> Row:
        """Returns the row of perturbed images, with the differences after each layer."""
        outputs = features(self.net, self.variables, images[self.sample])
        distance = norms(images[self.sample] - self.images[self.sample])
        differences = {name: norms(outputs[name] - y) for name, y in self.clean.items()}
        return {
            **self.row(kind, strength, outputs, images=images),
            "bound": float(np.mean(self.report.lipschitz * distance / self.size)),
            "layers": list(self.clean),
            "differences": [float(np.mean(differences[name] / norms(y))) for name, y in self.clean.items()],
            "ratios": [float(np.max(difference / distance)) for difference in differences.values()],
            "lipschitz_up_to": list(np.cumprod([layer.lipschitz for layer in self.report.layers])),
        }

    def with_factor(self, factor: float) -> Row:
        """Returns the row of a time step that is multiplied by a factor."""
        net = with_time_step(self.net, factor * self.ready.config.h)
        layers = stability_report(net, self.variables, self.images.shape[1:]).layers
        largest = max(max(map(abs, layer.amplification)) for layer in layers if layer.amplification)
        outputs = features(net, self.variables, self.images[self.sample])
        row = self.row("h times", factor, outputs, eval_step=jax.jit(make_eval_step(net)))
        return {**row, "amplification": largest}


def measure(subject: Subject, *, short: bool = False) -> Iterator[Row]:
    """Yields a row for the unperturbed network, and one for each perturbation."""
    strengths = {kind: grid[:1] if short else grid for kind, grid in STRENGTHS.items()}
    yield subject.row(UNPERTURBED, 0, subject.clean)
    for weights in perturbations.perturbed_weights(subject.variables["params"], strengths, subject.about["seed"]):
        yield subject.with_weights(*weights)
    for images in perturbations.perturbed_images(subject.images, strengths, subject.about["seed"]):
        yield subject.with_images(*images)
    if any(layer.amplification for layer in subject.report.layers):  # the steps are steps in time
        yield from map(subject.with_factor, strengths["h times"])


def markdown(rows: list[Row], name: str = "robustness") -> str:
    """Returns the page; `name` is that of its files."""
    names = _names(rows)
    lines: dict[tuple[str, float], Row] = {}
    for row in rows:  # one line for each perturbation, which holds a row for each run
        lines.setdefault((row["kind"], row["strength"]), {"about": row})[row["workdir"]] = row

    def accuracy(row: Row) -> str:
        return f"{100 * row['accuracy']:.2f}"

    def change(row: Row) -> str:
        bound = f" ≤ {_number(row['bound'])}" if "bound" in row else f", R {row['amplification']:.3g}"
        return _number(row["change"]) + bound

    def compared(cell: Callable[[Row], str], lines: list[Row]) -> str:
        columns = {names[w]: lambda line, w=w: cell(line[w]) if w in line else "" for w in names}
        return table(lines, {"perturbation": lambda line: _label(line["about"]), **columns})

    accuracies = compared(accuracy, list(lines.values()))
    bounds = compared(change, [line for (kind, _), line in lines.items() if kind != UNPERTURBED])
    return page(rows, name, " ".join(["robustness", *names]), accuracies=accuracies, bounds=bounds, noise=_drawn(rows))


def _label(row: Row) -> str:
    plain = {UNPERTURBED: "unperturbed", "bfloat16": "bfloat16"}
    return plain.get(row["kind"]) or "{kind} {strength:g}".format(**row)


def _number(x: float | None) -> str:
    """Returns two digits, or "overflow" for an infinity, which is null in the file."""
    return "overflow" if x is None or not math.isfinite(x) else f"{x:.2g}"


def _names(rows: list[Row]) -> dict[str, str]:
    """Returns work directory → its last part, or all of it if another one ends in the same."""
    workdirs = list(dict.fromkeys(row["workdir"] for row in rows))
    last = [Path(workdir).name for workdir in workdirs]
    return {w: name if last.count(name) == 1 else w for w, name in zip(workdirs, last, strict=True)}


def _drawn(rows: list[Row]) -> float:
    """Returns the noise whose growth is drawn."""
    return min(row["strength"] for row in rows if row["kind"] == "image noise")


def draw(rows: list[Row], path: Path) -> None:
    """Draws the relative difference after each layer, and the share of the bound that it reaches."""
    figure, (left, right) = plots.panels(2, 10, 4.2)
    datasets, names = sorted({row["dataset"] for row in rows}), _names(rows)
    for row in rows:
        if row["kind"] == "image noise" and row["strength"] == _drawn(rows):
            depth = range(1, len(row["layers"]) + 1)
            line = ("-", ":", "--", "-.")[datasets.index(row["dataset"]) % 4]
            style = {"markersize": 4, "linestyle": line} | plots.STYLES[row["architecture"]]
            left.semilogy(depth, row["differences"], label=names[row["workdir"]], **style)
            right.semilogy(depth, np.divide(*np.array([row["ratios"], row["lipschitz_up_to"]], float)), **style)
    left.set(xlabel="layer", ylabel="‖difference‖ / ‖features‖")
    right.set(xlabel="layer", ylabel="share of the product of the bounds")
    for panel in (left, right):
        panel.locator_params("x", integer=True)
    plots.finish(figure, path, ncols=3)


if __name__ == "__main__":
    entry.run(main, Config, long=True)
