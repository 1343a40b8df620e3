"""Classify pictures: `python -m experiments.predict PICTURE_OR_FOLDER... --workdir DIR` (or `--model FILE`).

With `--model FILE.onnx` nothing but NumPy, Pillow, tyro and onnxruntime is needed beside this repository.
"""

import csv
import dataclasses
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.common import entry
from experiments.common.files import messages, write_whole
from lowcost.data.decoding import MAX_PIXELS, read_picture
from lowcost.data.listing import SUFFIXES, list_images, report
from lowcost.terminal import printable, warn


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Class, probability and milliseconds of each picture, as the network sees it alone (batch 1)."""

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Image files (PNG, JPEG, WebP, BMP, GIF, TIFF), and folders of them, searched with the folders below."""
    workdir: Path | None = None
    """The work directory of a run."""
    model: Path | None = None
    """In its place, a file of `experiments.export`."""
    runtime: Literal["auto", "jax", "onnx"] = "auto"
    """What computes: onnxruntime for an .onnx file and JAX for all else, when auto. A run is folded for onnx first."""
    csv: Path | None = None
    """Write a table too."""
    max_pixels: int = MAX_PIXELS
    """Width times height of an image that are decoded at most; 4 to 16 bytes of memory each."""


class Classifier(NamedTuple):
    """What classifies.

    Attributes:
        logits: images float32 [B, H, W, C] in [0, 1] → [B, classes].
        classes: their names.
        image_shape: [H, W, C].
    """

    logits: Callable[[Any], Any]
    classes: list[str]
    image_shape: tuple[int, ...]


def main(config: PredictConfig) -> int:
    """Print a line a picture.

    Returns:
        0, or 2 where a picture could not be read.
    """
    files = list(find(config.pictures))
    if config.csv is not None and not config.csv.parent.is_dir():
        raise FileNotFoundError(f"{config.csv.parent} is no folder to write to; make it, or choose another --csv")
    classifier = load(config)
    rows, code = [], 0
    for file in files:
        try:
            image = read(file, classifier.image_shape, config.max_pixels)
        except ValueError as error:
            warn(f"error: {error}")
            code = 2
            continue
        started = time.perf_counter()
        logits = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
        milliseconds = 1000 * (time.perf_counter() - started)
        weights = np.exp(logits - logits.max())
        best = int(logits.argmax())
        row = (str(file), classifier.classes[best], weights[best] / weights.sum(), milliseconds)
        line = printable("{}  {}  {:.1%}  {:.1f} ms".format(*row))
        print(line, flush=True, file=messages(config.csv))
        rows.append(row)
    if config.csv is not None:
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(("file", "class", "probability", "milliseconds"))
        table.writerows((name, label, f"{p:.6f}", f"{ms:.3f}") for name, label, p, ms in rows)
        write_whole(config.csv, text.getvalue().encode(errors="surrogateescape"))  # a name need not be UTF-8
    return code


def find(pictures: tuple[Path, ...]) -> Iterator[Path]:
    """Yields files as they are, folders as the images in them and below, through links, each folder once.

    Raises:
        ValueError, OSError: there is nothing to classify in one of them.
    """
    if not pictures:
        raise ValueError("name pictures, or folders of them")
    for path in pictures:
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
            found, folders = list_images(path, left_out)
            images += [Path(entry.path) for entry in found]
            waiting += [entry.path for entry in folders]
    report(folder, left_out)
    if not images:
        raise ValueError(f"{folder}: no {', '.join(SUFFIXES)} in this folder or below")
    return images


def read(path: Path, image_shape: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns an image as training reads it: float32 [H, W, C] in [0, 1]."""
    from PIL import Image

    height, width, channels = image_shape
    pixels = read_picture(path, (height, width), max_pixels)
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return (pixels / np.float32(255)).reshape(height, width, channels)


def load(config: PredictConfig) -> Classifier:
    """The classifier that the flags name.

    Raises:
        ValueError, OSError, ImportError: what the user can mend, in one line.
    """
    if (config.workdir is None) == (config.model is None):
        raise ValueError("name either a run with --workdir or a file with --model")
    if config.workdir is not None:
        return _of_run(config.workdir, onnx=config.runtime == "onnx")
    assert config.model is not None
    is_onnx = config.model.suffix.lower() == ".onnx"
    if is_onnx and config.runtime == "jax":
        raise ValueError(f"JAX does not run {config.model}; leave --runtime out, or export with --format stablehlo")
    content = config.model.read_bytes()
    return (
        of_onnx(content, config.model) if is_onnx or config.runtime == "onnx" else of_stablehlo(content, config.model)
    )


def of_onnx(content: bytes, path: Path) -> Classifier:
    """By onnxruntime, with what the file's metadata tell."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime is needed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    with _readable(path, "ONNX"):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        told = session.get_modelmeta().custom_metadata_map
        return _tried(lambda images: session.run(None, {"images": images})[0], told)


def of_stablehlo(content: bytes, path: Path) -> Classifier:
    """By JAX, with what the file beside tells."""
    import jax

    beside = path.with_name(path.name + ".json")
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is missing, which holds the names of the classes; copy it with {path.name}")
    with _readable(path, "StableHLO"):
        exported = jax.export.deserialize(bytearray(content))
        return _tried(jax.jit(exported.call), json.loads(beside.read_text()))


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Every error as one line: decoders raise whatever they stumble over."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} cannot be used as {kind} file of `experiments.export` ({type(error).__name__}: {first}); "
            "export it again"
        ) from error


def _tried(logits: Callable[[Any], Any], told: dict[str, str]) -> Classifier:
    """The classifier after a first image, which compiles and touches the memory, and shows that all fits together."""
    classes, image_shape = json.loads(told["classes"]), tuple(json.loads(told["image_shape"]))
    "".join(classes).encode(errors="surrogateescape")  # raises for names that no table could hold
    got = np.asarray(logits(np.zeros((1, *image_shape), np.float32))).shape
    if got != (1, len(classes)):
        raise ValueError(f"logits of shape {list(got)} for one image and {len(classes)} classes")
    return Classifier(logits, classes, image_shape)


def _of_run(workdir: Path, *, onnx: bool) -> Classifier:
    from functools import partial

    import jax

    from experiments.common import runs
    from lowcost import deploy

    run = runs.trained(workdir)
    told = {"classes": json.dumps(run.classes), "image_shape": json.dumps(run.image_shape)}
    if onnx:
        model = deploy.to_onnx(deploy.fold(run.net, run.variables, run.image_shape), metadata=told)
        return of_onnx(model.SerializeToString(), workdir)
    return _tried(jax.jit(partial(run.net.apply, run.variables)), told)


if __name__ == "__main__":
    entry.run(main, PredictConfig)
