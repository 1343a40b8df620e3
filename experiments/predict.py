"""Classify pictures: `python -m experiments.predict PICTURE_OR_FOLDER... --workdir DIR` (or `--model FILE`).

With `--model FILE.onnx` nothing but NumPy, Pillow, tyro and onnxruntime is needed.
"""

import csv
import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments import entry
from experiments.files import messages, write_whole

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Class, probability and milliseconds of each picture, as the network sees it alone (batch 1)."""

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """PNG or JPEG files, and folders of them."""
    workdir: Path | None = None
    """The work directory of a run."""
    model: Path | None = None
    """In its place, a file of `experiments.export`."""
    runtime: Literal["auto", "jax", "onnx"] = "auto"
    """What computes: onnxruntime for an .onnx file and JAX for all else, when auto. A run is folded for onnx first."""
    csv: Path | None = None
    """Write a table too."""


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
            image = read(file, classifier.image_shape)
        except Exception as error:  # a damaged file raises whatever the decoder stumbles over
            print(f"error: {file}: cannot be read as a picture: {error}", file=sys.stderr)
            code = 2
            continue
        started = time.perf_counter()
        logits = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
        milliseconds = 1000 * (time.perf_counter() - started)
        weights = np.exp(logits - logits.max())
        best = int(logits.argmax())
        row = (str(file), classifier.classes[best], weights[best] / weights.sum(), milliseconds)
        print("{}  {}  {:.1%}  {:.1f} ms".format(*row), flush=True, file=messages(config.csv))
        rows.append(row)
    if config.csv is not None:
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(("file", "class", "probability", "milliseconds"))
        table.writerows((name, label, f"{p:.6f}", f"{ms:.3f}") for name, label, p, ms in rows)
        write_whole(config.csv, text.getvalue().encode())
    return code


def find(pictures: tuple[Path, ...]) -> Iterator[Path]:
    """Files as they are, folders as the pictures in them and below, by name.

    Raises:
        ValueError, OSError: there is nothing to classify in one of them.
    """
    if not pictures:
        raise ValueError("name pictures, or folders of them")
    for path in pictures:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise ValueError(f"{path}: no {', '.join(SUFFIXES)} in this folder or below")
            yield from files
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")


def read(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """A picture as training reads it: float32 [H, W, C] in [0, 1].

    Said again here, since `lowcost.data.pictures.read_picture` cannot be imported without JAX; a test compares the two.
    """
    from PIL import Image, ImageOps

    height, width, channels = image_shape
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
        if math.prod(opened.size) > (Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow itself allows twice as many
            raise ValueError(f"{opened.width} x {opened.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}")
        opened.draft("RGB", (2 * max(height, width),) * 2)
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I;16"):
            picture = picture.point(lambda value: value * (1 / 256)).convert("L")
        if picture.has_transparency_data:
            page = Image.new("RGBA", picture.size, "white")
            page.alpha_composite(picture.convert("RGBA"))
            picture = page
        picture = picture.convert("RGB")
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture if channels == 3 else picture.convert("L"), np.float32) / 255
    return pixels.reshape(height, width, channels)


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
    got = np.asarray(logits(np.zeros((1, *image_shape), np.float32))).shape
    if got != (1, len(classes)):
        raise ValueError(f"logits of shape {list(got)} for one image and {len(classes)} classes")
    return Classifier(logits, classes, image_shape)


def _of_run(workdir: Path, *, onnx: bool) -> Classifier:
    from functools import partial

    import jax

    from experiments import setup
    from lowcost import deploy

    run = setup.trained(workdir)
    told = {"classes": json.dumps(run.classes), "image_shape": json.dumps(run.image_shape)}
    if onnx:
        model = deploy.to_onnx(deploy.fold(run.net, run.variables, run.image_shape), metadata=told)
        return of_onnx(model.SerializeToString(), workdir)
    return _tried(jax.jit(partial(run.net.apply, run.variables)), told)


if __name__ == "__main__":
    entry.run(main, PredictConfig)
