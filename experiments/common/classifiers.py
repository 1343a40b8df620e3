"""Loads a network that is ready to classify: a run, a released network, or an exported file.

An .onnx file needs nothing but NumPy and onnxruntime besides this repository.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.common.inputs import Inputs
from lowcost import extras, terminal

Runtime = Literal["auto", "jax", "onnx"]
"""What runs the network, see the flag --runtime of `predict`."""


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


def load(workdir: Path | None = None, model: Path | None = None, runtime: Runtime = "auto") -> Classifier:
    """Returns the classifier that these flags of `predict` name.

    Raises:
        ValueError, OSError, ImportError: what the user can fix, in one line.
    """
    if workdir is not None and model is None:
        return _of_network(workdir, is_run=True, onnx=runtime == "onnx")
    if model is None or workdir is not None:
        got = "neither" if model is None else "both"
        raise ValueError(f"either --workdir or --model must be given, got {got}; name a run or a file")
    if model.is_dir():
        raise ValueError(f"--model must be a file, got the folder {model}; name a work directory with --workdir")
    is_onnx = model.suffix.lower() == ".onnx"
    if is_onnx and not model.exists():
        raise FileNotFoundError(f"--model must be a file, got {model}, which does not exist; correct its name")
    if is_onnx and runtime == "jax":
        raise ValueError(f"JAX does not run {model}; leave --runtime out, or export with --format stablehlo")
    if model.suffix.lower() == ".safetensors" or not (is_onnx or model.exists()):
        return _of_network(model, is_run=False, onnx=runtime == "onnx")
    of_file = _of_onnx if is_onnx or runtime == "onnx" else _of_stablehlo
    return of_file(model.read_bytes(), model)


def _of_onnx(content: bytes, path: Path) -> Classifier:
    """Returns a classifier that onnxruntime runs, as the metadata in the file describe it."""
    with extras.needs_extra("export"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    with _readable(path, "ONNX"):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        described = _described(session.get_modelmeta().custom_metadata_map)
        return _tried(lambda images: session.run(None, {"images": images})[0], described)


def _of_stablehlo(content: bytes, path: Path) -> Classifier:
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
        return _of_onnx(deploy.to_onnx(folded, metadata=loaded.metadata()).SerializeToString(), source)
    return _tried(jax.jit(partial(loaded.net.apply, loaded.variables)), _described(loaded.metadata()))
