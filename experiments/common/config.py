"""The configuration of a training run: flags, help and types of `experiments.train` from one frozen dataclass."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from experiments.common.files import write_whole
from lowcost.data.decoding import MAX_PIXELS

DatasetName = Literal["digits", "folder", "cifar10", "cifar100", "stl10"]
RecipeName = Literal["paper", "fast"]
Architecture = Literal[
    "implicit_rd", "explicit_rd", "circulant_rd", "implicit_circulant_rd", "linear_mix", "mobilenet", "resnet"
]
DIVERGED = 3
"""Exit status of training when the loss is no longer finite; to go on would be to meet that again."""

_OF_A_PROCESS = ("workdir", "data_dir", "download", "max_pixels", "keep", "tensorboard")
_NOT_OF_THE_RUN = (*_OF_A_PROCESS, "evaluate_every", "cluster")
_REWRITE = "remove it and run the same training again, which writes it anew"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train as one. SLURM, Open MPI and Cloud TPU need none of these flags."""

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat_seconds: int = 100
    """A process that is silent for so many seconds counts as dead, and the others end."""
    wait_seconds: int = 300
    """All processes must start within so many seconds; otherwise training ends with an error."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a network of the paper and leave its accuracy, curves and checkpoints in a work directory.

    The same command again resumes from the last checkpoint.
    """

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """digits: real handwritten digits inside scikit-learn; folder: your images, DIR/train/CLASS/* and DIR/test/CLASS/*
    (PNG, JPEG, WebP, BMP, GIF, TIFF) under --data-dir; cifar10, cifar100, stl10: the published archives, looked for in
    --data-dir, $LOWCOST_DATA and the user's cache folder."""
    architecture: Architecture = "implicit_rd"
    """The steps: implicit (Eq. 11), explicit (Eq. 9) or circulant (Eq. 12) reaction-diffusion, the latter also
    implicit; LinearMix (Eq. 7), MobileNet (Eq. 13), or a fully coupled ResNet (Eq. 3)."""
    width: Literal["A", "B", "C"] = "A"
    """Channels: A 32-64-128, B 48-96-192, C 32-64-128-256."""
    recipe: RecipeName = "paper"
    """paper: Adam from 0.01, halved after every fifth of the run; fast: a tenth of the epochs, with a whitened opening
    layer, one cycle of the learning rate, Muon for the matrices and an average of the weights; from the sixth epoch on
    the matrices decay, and augmentation is heavier."""
    epochs: int | None = None
    """Passes over the training images; 300 for the recipe paper, 30 for fast when not given."""
    train_images: int | None = None
    """Train on so many of the training images, drawn by lot, the same for every seed; all when not given."""
    batch_size: int = 100
    """Images per optimiser step, over all devices."""
    seed: int = 0
    """Of the initial weights, the order of the images and the augmentation."""
    seeds: int = 1
    """Train so many independent networks at once, with seed, seed + 1, …, and report mean ± standard deviation."""
    steps_per_block: int = 4
    """Depth: steps in each block."""
    h: float = 1.0
    """Time step; mobilenet has none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the features; weights, statistics and sums are float32 anyway."""
    remat: bool = False
    """Keep the features of one block at a time and compute the others again: less memory, more time."""
    workdir: Path | None = None
    """Where to write; runs/DATASET-ARCHITECTURE-WIDTH-RECIPE-seedN when not given."""
    keep: int = 2
    """Checkpoints that stay in the work directory, the newest."""
    evaluate_every: int = 1
    """Epochs from one evaluation on the test images to the next; the last epoch always has one."""
    data_dir: Path | None = None
    """Where the pictures or archives are."""
    download: bool = False
    """Get the archive of cifar10, cifar100 or stl10 if it is nowhere."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into WORKDIR/tensorboard."""
    image_size: int | None = None
    """folder: side of the square that images are resized to; when not given, their own size if they share one."""
    max_pixels: int = MAX_PIXELS
    """folder: refuse an image from which more pixels would have to be decoded."""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)

    def directory(self) -> Path:
        """The work directory."""
        seeds = f"seed{self.seed}" if self.seeds == 1 else f"seeds{self.seed}to{self.seed + self.seeds - 1}"
        name = f"{self.dataset}-{self.architecture}-{self.width}-{self.recipe}-{seeds}"
        return self.workdir or Path("runs") / name


def write_or_compare(
    config: TrainConfig, recipe: dict[str, Any], data: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Writes the configuration to the work directory, after a check that one there differs in `data_dir` at most.

    Args:
        config: the run's, with the number of epochs.
        recipe: its ingredients.
        data: what identifies the data set: classes, image shape, counts, digest.
        settings: of JAX, those that a result depends on.

    Raises:
        ValueError: the directory holds another configuration; the message names the fields.
    """
    path = config.directory() / "config.json"
    new = {**_fields(config, recipe), "data": data, "settings": settings}
    if path.exists():
        there, data_dir = _read(path)
        _compare(path, there, new)
        if data_dir == _pictures(config):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({**new, "data_dir": _pictures(config)}, indent=2) + "\n").encode())


def identity(workdir: Path) -> dict[str, Any]:
    """Returns what tells a run from all others: its seed and a digest of config.json, but for where its data lies."""
    content, _ = _read(workdir / "config.json")
    text = json.dumps(content, sort_keys=True).encode()
    return {"seed": content["seed"], "configuration": hashlib.sha256(text).hexdigest()[:16]}


def shared(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields that must be the same in all processes of a run."""
    fields = _flat(dataclasses.asdict(config))
    own = (*_OF_A_PROCESS, "cluster.coordinator", "cluster.process_id")
    return {name: value for name, value in fields.items() if name not in own}


def finished(config: TrainConfig, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What a run left in result.json, None of one that is not finished; no data set is read.

    Args:
        config: the run's, with the number of epochs.
        recipe: its ingredients.

    Raises:
        ValueError: the directory holds a finished run of another configuration, or of a folder elsewhere.
    """
    path = config.directory() / "config.json"
    result = path.with_name("result.json")
    if not result.exists():
        return None
    there, data_dir = _read(path)
    del there["data"], there["settings"]
    here = _fields(config, recipe)
    if config.dataset == "folder":  # another's pictures; an archive is the same wherever it lies
        there, here = {**there, "data_dir": data_dir}, {**here, "data_dir": _pictures(config)}
    _compare(path, there, here)
    return Result(result)


class Result(dict[str, Any]):
    """The content of a result.json.

    Raises:
        ValueError: it is damaged; also later, where a name is missing.
    """

    def __init__(self, path: Path):
        super().__init__(_json(path, _REWRITE))
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} must hold {name}, got none; {_REWRITE}")


def read(workdir: Path) -> tuple[TrainConfig, dict[str, Any], dict[str, Any]]:
    """The configuration that a work directory holds, its recipe's ingredients, and what identifies its data set.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir} holds no run: there is no config.json; train with --workdir {workdir} first"
        )
    fields, data_dir = _read(path)
    recipe, data, _ = (fields.pop(name) for name in ("ingredients", "data", "settings"))
    from experiments.common.recipes import Recipe

    _check(
        path, {**fields, "data_dir": data_dir}, {**get_type_hints(TrainConfig), "epochs": int, "data_dir": str | None}
    )
    _check(path, recipe, get_type_hints(Recipe), "ingredients.")
    _check(path, data, {"classes": list[str], "image_shape": list[int], "train": int}, "data.")
    try:
        return TrainConfig(**fields, workdir=workdir, data_dir=Path(data_dir) if data_dir else None), recipe, data
    except TypeError as error:
        raise ValueError(f"{path} is not of this version ({error}); train in another --workdir") from error


def _fields(config: TrainConfig, recipe: dict[str, Any]) -> dict[str, Any]:
    """What is written of a configuration and compared with another."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_OF_THE_RUN}
    return {**fields, "ingredients": recipe}


def _pictures(config: TrainConfig) -> str | None:
    return None if config.data_dir is None else str(config.data_dir.absolute())


def _compare(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """ValueError that names what differs."""
    one, other = _flat(there), _flat(json.loads(json.dumps(here)))
    differences = [
        f"{k} is {one.get(k)} there and {other.get(k)} here" for k in other | one if one.get(k) != other.get(k)
    ]
    if differences:
        raise ValueError(
            f"{path.parent} holds a run with another configuration: {'; '.join(differences)}. "
            "Choose another --workdir, or the configuration that is there"
        )


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    content = _json(path, "choose another --workdir")
    parts = [content.get(name) for name in ("ingredients", "data", "settings")]
    if not {"data_dir", "seed"} <= content.keys() or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path} is no configuration of a run; choose another --workdir")
    return content, content.pop("data_dir")


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; {remedy}")
    return content


def _check(path: Path, values: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> None:
    """ValueError that names the first value which is not of the type of its field; counts are at least 1."""
    for name in values.keys() & kinds.keys():
        value, kind = values[name], kinds[name]
        if not _fits(value, kind) or (kind is int and value < (name not in ("seed", "late"))):
            words = kind.__name__ if type(kind) is type else str(kind).removeprefix("typing.")
            raise ValueError(
                f"{prefix}{name} in {path} must be {words}, got {value!r}; "
                "put back the run's own config.json, or train in another --workdir"
            )


def _fits(value: Any, kind: Any) -> bool:
    """Returns whether a value from a JSON file is of a field's type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return type(value) is list and all(_fits(x, arguments[0]) for x in value)
    return type(value) in (arguments or (kind,)) or (type(value) is int and float in (arguments or (kind,)))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Entries of dictionaries inside by themselves: data.classes, ingredients.schedule."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
