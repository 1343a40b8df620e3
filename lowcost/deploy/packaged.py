"""Packs a trained network and the metadata that its users need into one .safetensors file."""

import dataclasses
import hashlib
import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import DTypeLike

from lowcost import disk
from lowcost.arguments import check_choice
from lowcost.data.dataset import DTYPES
from lowcost.data.tasks import IGNORED, Task
from lowcost.deploy.input_steps import preprocessing
from lowcost.nn.architectures import ARCHITECTURES, network
from lowcost.nn.networks import Network, block_channels, check_network
from lowcost.nn.structure import variable_shapes
from lowcost.scaling import Moments, are_moments
from lowcost.terminal import first_line

LONGEST = 2**20
"""Points of an axis up to which a file's image shape is believed."""
FORMAT = 3
"""Number of the newest format of files that this version writes and reads."""
Metadata = dict[str, str]
_PARSED = ("classes", "image_shape", "temperature", "scale", "moments", "masked")
"""Attributes of `Loaded` that are JSON in the metadata of files; None and False are left out."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """net.apply(variables, images) → logits: a trained network, and how to use it.

    Attributes:
        net: the network.
        variables: {"params", "batch_stats"}, float32.
        classes: the names of its outputs: classes, tags or values.
        image_shape: [*grid, C] of its images, signals or volumes; C includes the mask channel if there is one.
        task: "classes" (softmax of the logits), "tags" (sigmoid), "values" (the logits are standardised values) or
            "pixels" (softmax of the logits of each point).
        temperature: divides the logits of classes for calibrated probabilities.
        scale: (means, standard deviations) of the values, or None.
        preprocessing: JSON, see `preprocessing`.
        dtype: of its images, signals or volumes before they are scaled, one of `lowcost.data.dataset.DTYPES`.
        card: how the network was trained, how accurate it is, and its limits.

    Raises:
        ValueError: names, task, temperature, scale, dtype or shape do not fit the network.
    """

    net: Network
    variables: dict[str, Any]
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    task: str = "classes"
    temperature: float = 1.0
    scale: Moments | None = None
    preprocessing: str
    dtype: str = "uint8"
    card: Metadata = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        outputs = self.net.num_classes
        check_choice("task", self.task, get_args(Task))
        if len(self.classes) != outputs or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes must be {outputs} names, one per output, got {list(self.classes)}; name each")
        if not (isinstance(self.temperature, float | int) and 0 < self.temperature < math.inf):
            raise ValueError(f"temperature must be finite and above 0, got {self.temperature}; the default is 1.0")
        if self.task == "pixels" and outputs > IGNORED:
            raise ValueError(f"net must have at most {IGNORED} classes of points, got {outputs}; masks have 8 bits")
        if (self.task == "pixels") != (self.net.head == "pixels"):
            remedy = "choose the task 'pixels' for this head, and another task for others"
            raise ValueError(f"task must fit the network's head {self.net.head!r}, got {self.task!r}; {remedy}")
        if self.scale is not None and not are_moments(self.scale, outputs):
            expected = f"{outputs} finite means and deviations above 0"
            raise ValueError(f"scale must be {expected}, got {self.scale}; pass one of each per value")
        check_choice("dtype", self.dtype, DTYPES)
        if self.dtype != "float32" and (self.masked or (self.dtype == "uint8" and self.moments is not None)):
            expected = "float32 for a network with a mask, and not uint8 for one with moments"
            raise ValueError(f"dtype must be {expected}, got {self.dtype}; pass that of the training data")
        if self.masked and len(self.image_shape) != 2:
            expected = "[points, channels + 1] for a masked network"
            raise ValueError(f"image_shape must be {expected}, got {list(self.image_shape)}; only signals have a mask")

    @property
    def moments(self) -> Moments | None:
        """(means, standard deviations) of the scaled channels, by which the network standardises; None for uint8."""
        return self.net.moments

    @property
    def masked(self) -> bool:
        """Whether the last channel is a mask: 1 on the points of a signal, 0 on its padding."""
        return self.net.masked

    def metadata(self) -> Metadata:
        """Returns what exported files state about inputs and outputs."""
        values = {name: getattr(self, name) for name in _PARSED}
        parsed = {name: json.dumps(value) for name, value in values.items() if value is not None and value is not False}
        dtype = {} if self.dtype == "uint8" else {"dtype": self.dtype}
        return {**parsed, **dtype, "task": self.task, "preprocessing": self.preprocessing}


def save(
    file: str | os.PathLike[str],
    net: Network,
    variables: Mapping[str, Any],
    *,
    classes: Sequence[str],
    image_shape: Sequence[int],
    task: str = "classes",
    temperature: float = 1.0,
    scale: tuple[Sequence[float], Sequence[float]] | None = None,
    dtype: DTypeLike | None = None,
    length: int | None = None,
    card: Mapping[str, str] | None = None,
) -> None:
    """(net, variables) → file: writes a trained network to one .safetensors file, which `lowcost.load` reads.

    Not in the paper. PyTorch's safetensors reads the file too; the tensors are named like "params.opening.stencil".
    The file appears under its name only when it is complete.

    Args:
        file: to write, or to replace.
        net: made by `lowcost.nn.network`.
        variables: {"params", "batch_stats"}, float32; of one network, not of several seeds.
        classes: the names of its outputs: classes, tags or values.
        image_shape: [*grid, C] of its images, signals or volumes.
        task: "classes", "tags", "values" or "pixels".
        temperature: divides the logits of classes for calibrated probabilities.
        scale: (means, standard deviations) of the values.
        dtype: of images, signals or volumes before they are scaled, one of `lowcost.data.dataset.DTYPES`. None: float32
            for a network with moments or a mask, else uint8, which is for images of 1 or 3 channels alone.
        length: number of points to which every signal was resampled, as float32, or None.
        card: how the network was trained, how accurate it is, and what it must not be used for.

    Raises:
        TypeError: net is no `Network`.
        ValueError: a network with steps of your own, variables of another network, or an argument that does not fit it.
        OSError: the file cannot be written.
    """
    image_shape = tuple(map(int, image_shape))
    outputs = {"classes": tuple(classes), "task": task, "temperature": float(temperature)}
    check_network(net)
    if dtype is None and not (net.moments or net.masked) and (len(image_shape) != 3 or image_shape[-1] not in (1, 3)):
        expected = "dtype must be stated for a network without moments on other than grey or colour images"
        raise ValueError(f"{expected}, got None for {list(image_shape)}; e.g. dtype='float32' for unscaled numbers")
    dtype = np.dtype(dtype or ("float32" if net.moments or net.masked else "uint8")).name
    about: dict[str, Any] = {**outputs, "image_shape": image_shape, "dtype": dtype}
    about |= {"scale": as_tuples(scale), "card": dict(card or {})}
    points = None if length is None else operator.index(length)
    signals = len(image_shape) == 2 and task != "pixels" and dtype == "float32" and not net.masked
    if points is not None and not (signals and points == image_shape[0]):
        expected = "length must be None, or as in image_shape for float32 signals without a mask or labels of points"
        got = f"{points} for {dtype} {list(image_shape)}, task {task}, masked={net.masked}"
        raise ValueError(f"{expected}, got {got}; correct one of them")
    steps = preprocessing(image_shape, dtype, standardises=net.moments is not None, masked=net.masked, length=points)
    loaded = Loaded(net=net, variables=dict(variables), preprocessing=steps, **about)
    disk.replace(Path(file), encode(loaded))


def encode(loaded: Loaded) -> bytes:
    """Returns the content of the .safetensors file of a trained network; equal networks give equal bytes.

    Raises:
        ValueError: as in `save`.
    """
    tensors = {name: np.asarray(x) for name, x in flatten_dict(loaded.variables, sep=".").items()}
    _check_tensors("variables", tensors, variable_shapes(loaded.net, loaded.image_shape))
    options, card = _options(loaded.net), json.dumps(loaded.card, default=float)
    second = loaded.moments or loaded.masked or loaded.dtype != "uint8"
    newest = bool(options.keys() & {"boundary", "zero_mean", "fixed_scale"}) or loaded.net.head != "class"
    oldest = FORMAT if newest else 2 if second else 1  # which earlier versions can read
    metadata = {"format": str(oldest), "network": json.dumps(options, default=float), **loaded.metadata(), "card": card}
    content = safetensors.numpy.save(tensors, {**metadata, "sha256": _sha256(tensors, metadata)})
    length = 8 + int.from_bytes(content[:8], "little")
    # The package writes metadata in random order.
    header = json.dumps(json.loads(content[8:length]), sort_keys=True, separators=(",", ":")).encode()
    return content[:8] + header.ljust(length - 8) + content[length:]


def decode(content: bytes, name: str) -> Loaded:
    """Returns the trained network that `encode` made a file of.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        ValueError: the file is damaged, of a newer format, or of another network than it states.
    """
    try:
        tensors = dict(sorted(safetensors.numpy.load(content).items()))  # checks the header and all sizes
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        newer = int(metadata["format"]) > FORMAT
    except Exception as error:  # of types of the package's own
        problem = f"{name} must be a .safetensors file of lowcost.save, got another or a damaged one"
        raise ValueError(f"{problem} ({type(error).__name__}: {first_line(error)}); save it again") from error
    if newer:
        problem = f"{name} must be of format {FORMAT} or older, got {metadata['format']}"
        raise ValueError(f"{problem}; update lowcost, or save the file with this version")
    if metadata.pop("sha256", None) != _sha256(tensors, metadata):
        raise ValueError(f"{name} must match its sha256, got a damaged file; put back a copy, or save it again")
    try:
        loaded = _of_metadata(metadata, unflatten_dict(tensors, sep="."))
        # Both would take long before the tensors are found to be of another network.
        if loaded.net.steps_per_block * len(loaded.net.channels) > len(tensors) or max(loaded.image_shape) > LONGEST:
            raise ValueError("a network with more steps than tensors, or too large images")
        shapes = variable_shapes(loaded.net, loaded.image_shape)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        problem = f"{name} must describe a network of lowcost.nn.network, got {type(error).__name__}"
        raise ValueError(f"{problem}: {first_line(error)}; save it again") from error
    _check_tensors(name, tensors, shapes)
    return dataclasses.replace(loaded, variables=jax.device_put(loaded.variables))


def _of_metadata(metadata: Metadata, variables: dict[str, Any]) -> Loaded:
    parsed = {name: json.loads(metadata.get(name, "null")) for name in ("network", *_PARSED, "card")}
    inputs = {"moments": as_tuples(parsed.pop("moments")), "masked": parsed.pop("masked") is True}
    return Loaded(
        net=network(**parsed.pop("network"), **inputs),
        variables=variables,
        task=metadata["task"],
        preprocessing=metadata["preprocessing"],
        dtype=metadata.get("dtype", "uint8"),
        card=dict(parsed.pop("card")),
        **{name: as_tuples(value) for name, value in parsed.items()},
    )


def as_tuples(value: Any) -> Any:
    """Returns a value with tuples in place of lists and arrays, and Python's numbers in place of NumPy's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def _options(net: Network) -> dict[str, Any]:
    """Returns the arguments of `network` that make this network."""
    step, keywords = getattr(net.step, "func", None), getattr(net.step, "keywords", {})
    options = {
        "architecture": next((name for name, module in ARCHITECTURES.items() if module is step), None),
        "width": block_channels(net.channels),
        "num_classes": net.num_classes,
        "steps_per_block": net.steps_per_block,
        "dtype": jnp.dtype(net.dtype).name,
        **({} if net.head == "class" else {"head": net.head}),
        **({"decoder": True} if net.decoder else {}),
        **keywords,
    }
    made = network(**options) if options["architecture"] else None
    compared = operator.attrgetter("step", "kernel_size", "fixed_scale")
    if made is None or compared(made) != compared(net):
        problem = f"net must be made by lowcost.nn.network, got steps {net.step!r}"
        raise ValueError(f"{problem}; save keeps no networks with steps of your own")
    options.pop("reach", None)  # it only sets weights that the file has; earlier versions do not know it
    return options


def _check_tensors(name: str, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> None:
    """Raises ValueError unless the tensors have the shapes and dtypes of a network's variables."""
    flat = flatten_dict(shapes, sep=".")
    want, got = ({key: f"{x.dtype}{list(x.shape)}" for key, x in tree.items()} for tree in (flat, tensors))
    if key := next((key for key in want | got if want.get(key) != got.get(key)), ""):
        problem = f"{name} must hold {key} as {want.get(key, 'nothing')}, got {got.get(key, 'nothing')}"
        raise ValueError(f"{problem}; these are the variables of another network")


def _sha256(tensors: Mapping[str, np.ndarray], metadata: Metadata) -> str:
    """Returns the sha256 of the names and values of tensors and metadata."""
    values = {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in tensors.items()}
    return hashlib.sha256(json.dumps([values, metadata], sort_keys=True).encode()).hexdigest()
