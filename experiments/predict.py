"""Classifies images: `python -m experiments.predict IMAGE_OR_FOLDER... --workdir DIR` (or `--model FILE`).

With `--model FILE.onnx` nothing but NumPy, Pillow, tyro and onnxruntime is needed besides this repository.
"""

import csv
import dataclasses
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.common import entry
from experiments.common.files import check_target, messages, write_whole
from lowcost import extras, terminal
from lowcost.data import decoding, folders

Row = tuple[str, str, float, float]
"""File, class, probability, milliseconds."""


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What to classify, and by which network."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_OR_FOLDER...")]
    """Image files (PNG, JPEG, WebP, BMP, GIF, TIFF), and folders, which are searched with all folders below."""
    workdir: Path | None = None
    """Work directory of a run."""
    model: Path | None = None
    """A file of `experiments.export`, in place of a run."""
    runtime: Literal["auto", "jax", "onnx"] = "auto"
    """auto: onnxruntime for .onnx files, JAX for all else. onnx: a run is converted to ONNX first."""
    csv: Path | None = None
    """Also write a table to this file."""
    max_pixels: int = decoding.MAX_PIXELS
    """Refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes a pixel."""


class Classifier(NamedTuple):
    """A network that is ready to classify.

    Attributes:
        logits: images float32 [B, H, W, C] in [0, 1] → [B, classes].
        classes: their names.
        image_shape: [H, W, C].
    """

    logits: Callable[[Any], Any]
    classes: list[str]
    image_shape: tuple[int, ...]


def main(config: PredictConfig) -> int:
    """Prints one line per image: class, probability, and the milliseconds that the network takes for it alone.

    Returns:
        The exit status: 0, or 2 if an image could not be read.
    """
    files = list(find(config.images))
    if config.csv is not None:
        check_target(config.csv, "--csv")
    classifier = load(config)
    rows: list[Row] = []
    for file in files:
        try:
            rows.append(classify(classifier, file, config.max_pixels))
        except ValueError as error:
            terminal.warn(f"error: {error}")
        else:
            line = "{}  {}  {:.1%}  {:.1f} ms".format(*rows[-1])
            print(terminal.printable(line), flush=True, file=messages(config.csv))
    if config.csv is not None:
        write_whole(config.csv, table(rows))
    return 0 if len(rows) == len(files) else entry.FIXABLE


def find(paths: Sequence[Path]) -> Iterator[Path]:
    """Yields each file, and of each folder the images in it and in all folders below, each folder once.

    Raises:
        ValueError, OSError: a path does not exist, or a folder holds no image.
    """
    if not paths:
        raise ValueError("name images, or folders of them")
    for path in paths:
        if path.is_dir():
            yield from sorted(_below(path))
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")


def _below(folder: Path) -> list[Path]:
    left_out, images, waiting, seen = Counter[str](), [], [str(folder)], set()
    while waiting:
        path = waiting.pop()
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            files, below = folders.list_images(path, left_out)
            images += [Path(file.path) for file in files]
            waiting += [inner.path for inner in below]
    folders.report_left_out(folder, left_out)
    if not images:
        raise ValueError(f"{folder}: no {', '.join(folders.SUFFIXES)} in this folder or below")
    return images


def classify(classifier: Classifier, file: Path, max_pixels: int) -> Row:
    """Returns file, class, probability, and the milliseconds that the network takes for a batch of this image alone.

    Raises:
        ValueError: the image cannot be read.
    """
    image = read(file, classifier.image_shape, max_pixels)
    started = time.perf_counter()
    logits = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
    milliseconds = 1000 * (time.perf_counter() - started)
    weights = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return str(file), classifier.classes[best], weights[best] / weights.sum(), milliseconds


def read(path: Path, image_shape: tuple[int, ...], max_pixels: int = decoding.MAX_PIXELS) -> np.ndarray:
    """Returns an image as training reads it: float32 [H, W, C] in [0, 1]."""
    height, width, channels = image_shape
    pixels = decoding.read_image(path, (height, width), max_pixels)
    if channels == 1:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return (pixels / np.float32(255)).reshape(height, width, channels)


def table(rows: Sequence[Row]) -> bytes:
    """Returns the rows as CSV, in which names that are not UTF-8 stay as they are."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("file", "class", "probability", "milliseconds"))
    writer.writerows((name, label, f"{p:.6f}", f"{ms:.3f}") for name, label, p, ms in rows)
    return text.getvalue().encode(errors="surrogateescape")


def load(config: PredictConfig) -> Classifier:
    """Returns the classifier that the flags name.

    Raises:
        ValueError, OSError, ImportError: what the user can fix, in one line.
    """
    if config.workdir is not None and config.model is None:
        return _of_run(config.workdir, onnx=config.runtime == "onnx")
    if config.model is None or config.workdir is not None:
        raise ValueError("name either a run with --workdir or a file with --model")
    is_onnx = config.model.suffix.lower() == ".onnx"
    if is_onnx and config.runtime == "jax":
        raise ValueError(f"JAX does not run {config.model}; leave --runtime out, or export with --format stablehlo")
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
        return _tried(lambda images: session.run(None, {"images": images})[0], *described)


def of_stablehlo(content: bytes, path: Path) -> Classifier:
    """Returns a classifier that JAX runs, as the file FILE.json beside it describes it."""
    import jax

    beside = path.with_name(path.name + ".json")
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is missing, which holds the names of the classes; copy it with {path.name}")
    with _readable(beside, "metadata"):
        described = _described(json.loads(beside.read_text()))
    with _readable(path, "StableHLO"):
        return _tried(jax.jit(jax.export.deserialize(bytearray(content)).call), *described)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turns every error into one line; decoders raise errors of any type."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {terminal.first_line(error)}"
        problem = f"{path} cannot be used as {kind} file of `experiments.export` ({reason})"
        raise ValueError(f"{problem}; export it again") from error


def _described(metadata: dict[str, str]) -> tuple[list[str], tuple[int, ...]]:
    """Returns the classes and the image shape that the metadata of an exported file hold."""
    classes, image_shape = json.loads(metadata["classes"]), tuple(json.loads(metadata["image_shape"]))
    "".join(classes).encode(errors="surrogateescape")  # raises for names that no table could hold
    return classes, image_shape


def _tried(logits: Callable[[Any], Any], classes: list[str], image_shape: tuple[int, ...]) -> Classifier:
    """Returns the classifier after a first image, which compiles it and checks the number of its classes."""
    got = np.asarray(logits(np.zeros((1, *image_shape), np.float32))).shape
    if got != (1, len(classes)):
        raise ValueError(f"logits of shape {list(got)} for one image and {len(classes)} classes")
    return Classifier(logits, classes, image_shape)


def _of_run(workdir: Path, *, onnx: bool) -> Classifier:
    import jax

    from experiments.common import runs
    from lowcost import deploy

    run = runs.trained(workdir)
    if onnx:
        model = deploy.to_onnx(deploy.fold(run.net, run.variables, run.image_shape), metadata=run.metadata())
        return of_onnx(model.SerializeToString(), workdir)
    return _tried(jax.jit(partial(run.net.apply, run.variables)), list(run.classes), run.image_shape)


if __name__ == "__main__":
    entry.run(main, PredictConfig)
