"""Classifies images, signals or volumes, or their points: `python -m experiments.predict FILE... --workdir DIR`.

`--model FILE` takes an exported file in place of a run. With an .onnx file nothing but NumPy, Pillow, tyro and
onnxruntime is needed besides this repository.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from experiments.common import classifiers, entry, masks
from experiments.common.classifiers import Classifier, Runtime
from experiments.common.evaluation import number, number_cells, sigmoid
from experiments.common.files import check_target, csv_table, messages, write_whole
from experiments.common.inputs import ARRAYS, examples, find
from lowcost import terminal
from lowcost.data import decoding
from lowcost.train.calibration import softmax


class Prediction(NamedTuple):
    """Holds the answers of a network for one image, signal or volume.

    Attributes:
        file: its file, of several with its row: FILE[3].
        answers: (name, number): the most probable classes with their probabilities, the most probable one first; or all
            tags with their probabilities; or all values.
        milliseconds: the time that the network takes for it alone.
        mask: the class of each point, uint8 [*grid], of networks that label every point, whose answers are the shares
            of all classes in it.
    """

    file: str
    answers: list[tuple[str, float]]
    milliseconds: float
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What to classify, and by which network."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")]
    """Image files (PNG, JPEG, WebP, BMP, GIF, TIFF), .npy and .npz files with one example or several, of the dtype and
    shape of the training examples, and folders, which are searched with all folders below."""
    workdir: Path | None = None
    """Work directory of a run."""
    model: Path | None = None
    """A file of `experiments.export`, or the name of a released network, in place of a run."""
    runtime: Runtime = "auto"
    """auto: onnxruntime for .onnx files, JAX for all else. onnx: runs and .safetensors files are converted first."""
    top: int = 1
    """Number of classes to print for each image, the most probable first. For pixels, all classes are printed."""
    csv: Path | None = None
    """Also write a table to this file."""
    out: Path | None = None
    """Networks that label every pixel: folder for one mask per image, NAME.png, or NAME.npy of signals and volumes."""
    max_pixels: int = decoding.MAX_PIXELS
    """Refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes per pixel."""


def main(config: PredictConfig) -> int:
    """Prints one line per example: classes, tags or values, and the milliseconds that the network takes for it alone.

    Returns:
        The exit status: 0, or 2 if a file could not be read.
    """
    if config.top < 1:
        raise ValueError(f"--top must be at least 1, got {config.top}")
    if config.csv is not None:
        check_target(config.csv, "--csv")
    classifier, status = classifiers.load(config.workdir, config.model, config.runtime), 0
    rows: list[Prediction] = []
    files = list(find(config.images, classifier.takes))
    targets = Targets(config.out, classifier, files)
    for file in files:
        try:
            for name, image in examples(file, classifier.takes, config.max_pixels):
                row = classify(classifier, name, image, config.top)
                targets.write(row)
                rows.append(row)
                print(terminal.printable(line(classifier, row)), flush=True, file=messages(config.csv))
        except ValueError as error:
            terminal.report_error(error)
            status = entry.FIXABLE
    if config.csv is not None:
        write_whole(config.csv, table(classifier, rows, config.top))
    return status


class Targets:
    """Plans and writes the mask files, one per example; no file replaces an existing one.

    Args:
        folder: of the files, which is created; None for other tasks than "pixels".
        classifier: the network.
        files: the inputs.

    Raises:
        ValueError: no folder for a network that labels points, or one for another network; or the mask of an image
            file exists, or is that of two image files.
    """

    def __init__(self, folder: Path | None, classifier: Classifier, files: Sequence[Path]):
        if (folder is None) == (classifier.task == "pixels"):
            remedy = "leave it out" if folder else "add --out DIR"
            raise ValueError(f"--out must be a folder for masks, for the task pixels alone, got {folder}; {remedy}")
        self.folder, self.suffix = folder, masks.suffix(classifier.takes.image_shape[:-1])
        self.planned: dict[Path, str] = {}
        for file in files if folder else ():
            if file.suffix.lower() not in ARRAYS:  # an array may hold several examples, which only reading it shows
                self._plan(str(file))

    def _plan(self, name: str) -> Path:
        """Returns the mask file of an example: its name with another suffix, of row 3 of FILE.npy FILE[3]."""
        file, bracket, number = name.rpartition("[") if name.endswith("]") else (name, "", "")
        target = Path(self.folder or "", f"{Path(file).stem}{bracket}{number}{self.suffix}")
        other = self.planned.setdefault(target, name)
        if other != name or target.exists():
            got = f"an existing file for {name}" if other == name else f"the masks of {other} and {name}"
            remedy = "choose another folder with --out, or predict one folder at a time"
            raise ValueError(f"{target} must be a new file for one mask, got {got}; {remedy}")
        return target

    def write(self, row: Prediction) -> None:
        """Writes the mask of an example.

        Raises:
            ValueError: the file exists, or is that of another example.
        """
        if row.mask is not None:
            masks.write(self._plan(row.file), row.mask)


def classify(classifier: Classifier, name: str, image: np.ndarray, top: int) -> Prediction:
    """Returns the answers on an image, of classes the `top` most probable ones, for a batch of this image alone."""
    started = time.perf_counter()
    numbers = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
    milliseconds = 1000 * (time.perf_counter() - started)
    if classifier.task == "pixels":
        mask = numbers.argmax(-1).astype(np.uint8)
        shares = np.bincount(mask.ravel(), minlength=numbers.shape[-1]) / mask.size
        return Prediction(name, [*zip(classifier.classes, shares.tolist(), strict=True)], milliseconds, mask)
    order = np.arange(len(numbers))
    if classifier.task == "classes":
        numbers = softmax(numbers, classifier.temperature)
        order = np.argsort(-numbers, kind="stable")[:top]
    elif classifier.task == "tags":
        numbers = sigmoid(numbers)
    else:
        numbers = np.add(classifier.scale[0], np.multiply(classifier.scale[1], numbers))
    return Prediction(name, [(classifier.classes[i], float(numbers[i])) for i in order], milliseconds)


def line(classifier: Classifier, row: Prediction) -> str:
    """Returns what is printed for an image: classes or values, tags of probability ≥ 1/2, or the classes of points."""
    if classifier.task == "values":
        deviations = np.broadcast_to(classifier.scale[1], len(row.answers))
        answers = [f"{name}  {number(x, d)}" for (name, x), d in zip(row.answers, deviations, strict=True)]
    else:
        least = {"tags": 0.5, "pixels": 1e-9}.get(classifier.task, 0)
        answers = [f"{name}  {x:.1%}" for name, x in row.answers if x >= least]
    return "  ".join([row.file, *(answers or ["no tag"]), f"{row.milliseconds:.1f} ms"])


def table(classifier: Classifier, rows: Sequence[Prediction], top: int) -> bytes:
    """Returns the rows as CSV: file, class, probability, milliseconds, class2, ...; else a column per name."""
    if classifier.task != "classes":
        header = ["file", "milliseconds", *classifier.classes]
        columns = [number_cells([x for _, x in row.answers], classifier.scale[1]) for row in rows]
        lines = [[row.file, f"{row.milliseconds:.3f}", *x] for row, x in zip(rows, columns, strict=True)]
        return csv_table(header, lines)
    further = range(2, min(top, len(classifier.classes)) + 1)
    more = [f"{column}{i}" for i in further for column in ("class", "probability")]
    lines = []
    for file, answers, milliseconds, _ in rows:
        cells = [cell for name, p in answers for cell in (name, f"{p:.6f}")]
        lines.append([file, *cells[:2], f"{milliseconds:.3f}", *cells[2:]])
    return csv_table(["file", "class", "probability", "milliseconds", *more], lines)


if __name__ == "__main__":
    entry.run(main, PredictConfig)
