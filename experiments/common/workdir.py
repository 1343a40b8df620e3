"""Reads and writes the small files of a work directory: config.json, which identifies a run, and result.json."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from experiments.common.config import TrainConfig
from experiments.common.files import write_whole
from experiments.common.recipes import Recipe

_OF_A_PROCESS = ("workdir", "data_dir", "download", "max_pixels", "keep", "tensorboard")
_NOT_OF_THE_RUN = (*_OF_A_PROCESS, "evaluate_every", "cluster")
_REWRITE = "remove it and run the same training again, which writes it anew"


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
