"""Classify pictures: `python -m experiments.predict PICTURE_OR_FOLDER... --workdir DIR` (or `--model FILE`).

With `--model FILE.onnx` nothing but NumPy, Pillow and onnxruntime is needed.
"""

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

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
    if not files:
        raise ValueError(f"no {', '.join(SUFFIXES)} in {', '.join(map(str, config.pictures)) or 'nothing'}; name some")
    classifier = load(config)
    np.asarray(classifier.logits(np.zeros((1, *classifier.image_shape), np.float32)))  # compile, and touch the memory
    rows, code = [], 0
    for file in files:
        try:
            image = read(file, classifier.image_shape)
        except (OSError, ValueError, SyntaxError) as error:  # the last one is Pillow's for a damaged PNG
            print(f"error: {file}: cannot be read as a picture: {error}", file=sys.stderr)
            code = 2
            continue
        started = time.perf_counter()
        logits = np.asarray(classifier.logits(image[None]))[0].astype(np.float64)
        milliseconds = 1000 * (time.perf_counter() - started)
        weights = np.exp(logits - logits.max())
        best = int(logits.argmax())
        row = (str(file), classifier.classes[best], weights[best] / weights.sum(), milliseconds)
        print("{}  {}  {:.1%}  {:.1f} ms".format(*row), flush=True)
        rows.append(row)
    if config.csv is not None:
        with config.csv.open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(("file", "class", "probability", "milliseconds"))
            table.writerows((name, label, f"{p:.6f}", f"{ms:.3f}") for name, label, p, ms in rows)
    return code


def find(pictures: tuple[Path, ...]) -> Iterator[Path]:
    """Files as they are, folders as the pictures in them and below, by name."""
    for path in pictures:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")


def read(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """A picture as training reads it: float32 [H, W, C] in [0, 1]."""
    from PIL import Image, ImageOps

    height, width, channels = image_shape
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
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
    content = config.model.read_bytes()
    if config.runtime == "onnx" or (config.runtime == "auto" and config.model.suffix == ".onnx"):
        return of_onnx(content, str(config.model))
    return of_stablehlo(content, config.model)


def of_onnx(content: bytes, name: str) -> Classifier:
    """By onnxruntime, with what the file's metadata tell."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime is needed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        told = session.get_modelmeta().custom_metadata_map
        classes, image_shape = json.loads(told["classes"]), json.loads(told["image_shape"])
    except Exception as error:  # onnxruntime has an exception class for each status
        first = str(error).splitlines()[0]
        raise ValueError(f"{name} is no ONNX file of `experiments.export` ({first}); export it again") from error
    return Classifier(lambda images: session.run(None, {"images": images})[0], classes, tuple(image_shape))


def of_stablehlo(content: bytes, path: Path) -> Classifier:
    """By JAX, with what the file beside tells."""
    import jax

    beside = path.with_name(path.name + ".json")
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is missing, which holds the names of the classes; copy it with {path.name}")
    told = json.loads(beside.read_text())
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:  # whatever the decoder stumbles over
        raise ValueError(f"{path} is no StableHLO file of `experiments.export`; export it again") from error
    return Classifier(jax.jit(exported.call), json.loads(told["classes"]), tuple(json.loads(told["image_shape"])))


def _of_run(workdir: Path, *, onnx: bool) -> Classifier:
    from functools import partial

    import jax

    from experiments import setup
    from lowcost import deploy

    run = setup.trained(workdir)
    if onnx:
        told = {"classes": json.dumps(run.classes), "image_shape": json.dumps(run.image_shape)}
        model = deploy.to_onnx(deploy.fold(run.net, run.variables, run.image_shape), metadata=told)
        return of_onnx(model.SerializeToString(), str(workdir))
    return Classifier(jax.jit(partial(run.net.apply, run.variables)), list(run.classes), run.image_shape)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(PredictConfig, prog="python -m experiments.predict", description=__doc__)))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
