"""Classifies images, signals or volumes, or their points: `python -m experiments.predict FILE... --workdir DIR`.

`--model FILE` takes an exported file in place of a run. With an .onnx file nothing but NumPy, Pillow, tyro and
onnxruntime is needed besides this repository.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.common import entry, masks
from experiments.common.evaluation import number, number_cells, sigmoid
from experiments.common.files import check_target, csv_table, messages, write_whole
from experiments.common.inputs import ARRAYS, Inputs, examples, find
from lowcost import extras, terminal
from lowcost.data import decoding
from lowcost.train.calibration import softmax


class Row(NamedTuple):
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
    runtime: Literal["auto", "jax", "onnx"] = "auto"
    """auto: onnxruntime for .onnx files, JAX for all else. onnx: runs and .safetensors files are converted first."""
    top: int = 1
    """Number of classes to print for each image, the most probable first. For pixels, all classes are printed."""
    csv: Path | None = None
    """Also write a table to this file."""
    out: Path | None = None
    """Networks that label every pixel: folder for one mask per image, NAME.png, or NAME.npy of signals and volumes."""
    max_pixels: int = decoding.MAX_PIXELS
    """Refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes per pixel."""


class Classifier(NamedTuple):
    """A network that is ready to classify.

    Attributes:
        logits: float32 [B, *grid, C] → [B, classes], or [B, *grid, classes] for the task "pixels".
        classes: their names, or those of tags or values.
        takes: shape, dtype and scaling of what it classifies.
        task: how answers are computed from logits: "classes" by a softmax, "tags" by a sigmoid, "values" by `scale`,
            "pixels" by the largest logit of each point.
        temperature: the softmax is of logits / temperature.
        scale: (means, standard deviations) of the values if the logits are standardised.
    """

    logits: Callable[[Any], Any]
    classes: list[str]
    takes: Inputs
    task: str = "classes"
    temperature: float = 1.0
    scale: tuple[Any, Any] = (0.0, 1.0)


def main(config: PredictConfig) -> int:
    """Prints one line per example: classes, tags or values, and the milliseconds that the network takes for it alone.

    Returns:
        The exit status: 0, or 2 if a file could not be read.
    """
    if config.top < 1:
        raise ValueError(f"--top must be at least 1, got {config.top}")
    if config.csv is not None:
        check_target(config.csv, "--csv")
    classifier, status = load(config), 0
    rows: list[Row] = []
    files = list(find(config.images, classifier.takes))
    targets = Targets(config.out, classifier, files)
    for file in files:
        try:
            for name, image in examples(file, classifier.takes, config.max_pixels):
                rows.append(classify(classifier, name, image, config.top))
                targets.write(rows[-1])
                print(terminal.printable(line(classifier, rows[-1])), flush=True, file=messages(config.csv))
        except ValueError as error:
            terminal.warn(f"error: {error}")
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

    def write(self, row: Row) -> None:
        """Writes the mask of an example.

        Raises:
            ValueError: the file exists, or is that of another example.
        """
        if row.mask is not None:
            masks.write(self._plan(row.file), row.mask)


def classify(classifier: Classifier, name: str, image: np.ndarray, top: int) -> Row:
    """Returns the answers on an image, of classes the `top` most probable ones, for a batch of this image alone."""
    started = time.perf_counter()
    numbers = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
    milliseconds = 1000 * (time.perf_counter() - started)
    if classifier.task == "pixels":
        mask = numbers.argmax(-1).astype(np.uint8)
        shares = np.bincount(mask.ravel(), minlength=numbers.shape[-1]) / mask.size
        return Row(name, [*zip(classifier.classes, shares.tolist(), strict=True)], milliseconds, mask)
    order = np.arange(len(numbers))
    if classifier.task == "classes":
        numbers = softmax(numbers, classifier.temperature)
        order = np.argsort(-numbers, kind="stable")[:top]
    elif classifier.task == "tags":
        numbers = sigmoid(numbers)
    else:
        numbers = np.add(classifier.scale[0], np.multiply(classifier.scale[1], numbers))
    return Row(name, [(classifier.classes[i], float(numbers[i])) for i in order], milliseconds)


def line(classifier: Classifier, row: Row) -> str:
    """Returns what is printed for an image: classes or values, tags of probability ≥ 1/2, or the classes of points."""
    if classifier.task == "values":
        deviations = np.broadcast_to(classifier.scale[1], len(row.answers))
        answers = [f"{name}  {number(x, d)}" for (name, x), d in zip(row.answers, deviations, strict=True)]
    else:
        least = {"tags": 0.5, "pixels": 1e-9}.get(classifier.task, 0)
        answers = [f"{name}  {x:.1%}" for name, x in row.answers if x >= least]
    return "  ".join([row.file, *(answers or ["no tag"]), f"{row.milliseconds:.1f} ms"])


def table(classifier: Classifier, rows: Sequence[Row], top: int) -> bytes:
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


def load(config: PredictConfig) -> Classifier:
    """Returns the classifier that the flags name.

    Raises:
        ValueError, OSError, ImportError: what the user can fix, in one line.
    """
    if config.workdir is not None and config.model is None:
        return _of_network(config.workdir, is_run=True, onnx=config.runtime == "onnx")
    if config.model is None or config.workdir is not None:
        got = "neither" if config.model is None else "both"
        raise ValueError(f"either --workdir or --model must be given, got {got}; name a run or a file")
    is_onnx = config.model.suffix.lower() == ".onnx"
    if is_onnx and not config.model.exists():
        raise FileNotFoundError(f"--model must be a file, got {config.model}, which does not exist; correct its name")
    if is_onnx and config.runtime == "jax":
        raise ValueError(f"JAX does not run {config.model}; leave --runtime out, or export with --format stablehlo")
    if config.model.suffix.lower() == ".safetensors" or not (is_onnx or config.model.exists()):
        return _of_network(config.model, is_run=False, onnx=config.runtime == "onnx")
    of_file = of_onnx if is_onnx or config.runtime == "onnx" else of_stablehlo
    return of_file(config.model.read_bytes(), config.model)


def of_onnx(content: bytes, path: Path) -> Classifier:
    """Returns a classifier that onnxruntime runs, as the metadata in the file describe it."""
    with extras.needs_extra("export"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    with _readable(path, "ONNX"):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        described = _described(session.get_modelmeta().custom_metadata_map)
        return _tried(lambda images: session.run(None, {"images": images})[0], described)


def of_stablehlo(content: bytes, path: Path) -> Classifier:
    """Returns a classifier that JAX runs, as the file FILE.json beside it describes it."""
    import jax

    metadata_path = path.with_name(path.name + ".json")
    if not metadata_path.exists():
        raise FileNotFoundError(
            f"{metadata_path} must hold the names of the classes, got no file; copy it with {path.name}"
        )
    with _readable(metadata_path, "metadata"):
        described = _described(json.loads(metadata_path.read_text()))
    with _readable(path, "StableHLO"):
        return _tried(jax.jit(jax.export.deserialize(bytearray(content)).call), described)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turns every error into one line; decoders raise errors of any type."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {terminal.first_line(error)}"
        problem = f"{path} cannot be used as {kind} file of `experiments.export` ({reason})"
        raise ValueError(f"{problem}; export it again") from error


def _described(metadata: dict[str, str]) -> dict[str, Any]:
    """Returns the fields of the classifier that the metadata of an exported file hold."""
    classes, temperature = json.loads(metadata["classes"]), float(metadata.get("temperature", 1))
    "".join(classes).encode(errors="surrogateescape")  # raises for names that no table could hold
    task = metadata.get("task", "classes")
    if task not in ("classes", "tags", "values", "pixels") or not 0 < temperature < math.inf:
        raise ValueError(f"unknown task {task!r}, or temperature {temperature} not above 0")
    (mean, deviation), dtype = json.loads(metadata.get("scale", "[0, 1]")), metadata.get("dtype", "uint8")
    if dtype != "float32":
        np.iinfo(dtype)  # raises for what is no integer
    length = json.loads(metadata.get("preprocessing", "{}")).get("length")
    takes = Inputs(tuple(json.loads(metadata["image_shape"])), dtype, metadata.get("masked") == "true", length)
    about = {"classes": classes, "takes": takes, "task": task}
    return {**about, "temperature": temperature, "scale": (mean, deviation)}


def _tried(logits: Callable[[Any], Any], described: dict[str, Any]) -> Classifier:
    """Returns the classifier after a first image, which compiles it and checks the number of its classes."""
    classifier = Classifier(logits, **described)
    got = np.asarray(logits(np.zeros((1, *classifier.takes.image_shape), np.float32))).shape
    grid = classifier.takes.image_shape[:-1] if classifier.task == "pixels" else ()
    if got != (1, *grid, len(classifier.classes)):
        raise ValueError(f"logits of shape {list(got)} for one image and {len(classifier.classes)} classes")
    return classifier


def _of_network(source: Path, *, is_run: bool, onnx: bool) -> Classifier:
    """Returns a classifier of a run, or of what else `lowcost.load` takes."""
    import jax

    import lowcost
    from experiments.common import runs
    from lowcost import deploy

    loaded = runs.trained(source) if is_run else lowcost.load(source)
    if onnx and loaded.masked:
        raise ValueError(f"{source} has a mask, which onnxruntime does not run; leave out --runtime onnx")
    if onnx:
        folded = deploy.fold(loaded.net, loaded.variables, loaded.image_shape)
        return of_onnx(deploy.to_onnx(folded, metadata=loaded.metadata()).SerializeToString(), source)
    return _tried(jax.jit(partial(loaded.net.apply, loaded.variables)), _described(loaded.metadata()))


if __name__ == "__main__":
    entry.run(main, PredictConfig)
