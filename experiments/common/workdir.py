"""Reads and writes the small files of a work directory: config.json, which identifies a run, and result.json."""

import dataclasses
import json
from collections.abc import Container
from pathlib import Path
from typing import Any, get_type_hints

from experiments.common.config import TrainConfig, fits
from experiments.common.files import write_whole
from experiments.common.recipes import Recipe
from lowcost.deploy.loading import Json, Result, configuration, flat

_OF_A_PROCESS = ("workdir", "data_dir", "download", "max_pixels", "keep", "tensorboard")
"""Fields that may differ from one process of a run to the other."""
_NOT_OF_THE_RUN = (*_OF_A_PROCESS, "evaluate_every", "cluster", "dry_run")
"""Fields that may differ when a run resumes; data_dir is written nevertheless, for programs that read the run."""
_OLD_DEFAULTS = {"kernel_size": 3}
"""Values of fields that an old config.json lacks and whose default has changed since."""
_DATA = {"classes": list[str], "image_shape": list[int], "train": int}
"""Types of the values under "data" in config.json that readers of a run need."""
_FROM_ZERO = ("seed", "ingredients.late")
"""Whole numbers that may be 0; all others count something."""


def write_or_compare(config: TrainConfig, recipe: Json, data: Json, settings: Json, methods: Json) -> None:
    """Writes config.json, or compares it with the one in the work directory, from which only data_dir may differ.

    Args:
        config: the configuration of the run, with the number of epochs.
        recipe: its ingredients.
        data: what identifies the data set: classes, image shape, numbers of images, digest.
        settings: JAX's settings that a result depends on.
        methods: the methods of its operators on CPUs, by point.

    Raises:
        ValueError: the directory holds another configuration; the message names the fields.
    """
    path = config.directory() / "config.json"
    content = _content(config, recipe, data, settings, methods)
    if path.exists():
        saved = configuration(path.parent)
        _compare(path, _with_defaults(saved), content, without=("data_dir",))
        if saved["data_dir"] == content["data_dir"]:
            return
        content = {**saved, "data_dir": content["data_dir"]}  # new fields would change the identity of an older run
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def shared(config: TrainConfig) -> Json:
    """Returns the fields that must be the same in all processes of a run."""
    without = (*_OF_A_PROCESS, "cluster.coordinator", "cluster.process_id")
    return {name: value for name, value in flat(dataclasses.asdict(config)).items() if name not in without}


def finished(config: TrainConfig, recipe: Json) -> Json | None:
    """Returns the content of result.json, or None if the run is not finished; reads no data set.

    Args:
        config: the configuration of the run, with the number of epochs.
        recipe: its ingredients.

    Raises:
        ValueError: the directory holds a finished run of another configuration, or of another folder or file of images.
    """
    path = config.directory() / "result.json"
    if not path.exists():
        return None
    given = _content(config, recipe, {}, {}, {})
    saved = _with_defaults(configuration(path.parent))
    if (given["task"], saved["task"]) == ("classes", "pixels"):  # which was found in the data
        given["task"] = "pixels"
    without = ["data", "settings", "methods"]
    without += [] if config.dataset in ("folder", "arrays") else ["data_dir"]  # an archive is the same wherever it lies
    _compare(path, saved, given, without)
    return Result(path)


def recorded_kernel_size(workdir: Path) -> int | None:
    """Returns the points of the stencils per axis that config.json states; None without a run or a whole number."""
    if not (workdir / "config.json").exists():
        return None
    size = {**_OLD_DEFAULTS, **configuration(workdir)}["kernel_size"]
    return size if fits(size, int) else None


def read(workdir: Path) -> tuple[TrainConfig, Recipe]:
    """Returns a run's configuration and recipe.

    Raises:
        FileNotFoundError: the directory holds no run.
        ValueError: config.json is damaged.
    """
    path = workdir / "config.json"
    fields = {**_OLD_DEFAULTS, **configuration(workdir)}
    _check_types(path, {**fields, **flat({name: fields[name] for name in ("ingredients", "data")})})
    fields.pop("methods", None)  # which older runs lack
    recipe, data, _, data_dir = (fields.pop(name) for name in ("ingredients", "data", "settings", "data_dir"))
    try:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        ignored = data_dir is None or fields["dataset"] == "digits"  # for which older versions took one
        config = TrainConfig(**fields, workdir=workdir, data_dir=None if ignored else Path(data_dir))
        if absent := _DATA.keys() - data.keys():
            raise KeyError(*sorted(absent))
        return config, Recipe(**recipe)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not of this version ({error}); train in another --workdir") from error


def _content(config: TrainConfig, recipe: Json, data: Json, settings: Json, methods: Json) -> Json:
    """Returns the content of config.json, as JSON reads it."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_OF_THE_RUN}
    data_dir = None if config.data_dir is None else str(config.data_dir.absolute())
    parts = {"ingredients": recipe, "data": data, "settings": settings, "methods": methods}
    content = {**fields, **parts, "data_dir": data_dir}
    return json.loads(json.dumps(content))


def _with_defaults(content: Json) -> Json:
    """Returns the content of a config.json with the fields that it lacks, because they are newer than the run."""
    defaults = _content(TrainConfig(), dataclasses.asdict(Recipe()), {}, {}, {})
    ingredients = defaults["ingredients"] | content["ingredients"]
    return {**defaults, **_OLD_DEFAULTS, **content, "ingredients": ingredients}


def _compare(path: Path, saved: Json, given: Json, without: Container[str]) -> None:
    """Raises ValueError that names what differs."""
    one, other = (flat({k: v for k, v in content.items() if k not in without}) for content in (saved, given))
    pairs = {name: (one.get(name), other.get(name)) for name in other | one}
    differing = {
        name: f"{name} is {_short(name, x)} there and {_short(name, y)} here"
        for name, (x, y) in pairs.items()
        if x != y
    }
    if differing:
        got = ", ".join(differing.values())
        problem = f"{path.parent} must hold a run of the same configuration, got another: {got}"
        remedy = "choose another --workdir, or the configuration that is there"
        if differing.keys() == {"epochs"}:
            remedy = f"to train on, start a run in another --workdir with --init-from {path.parent}"
        raise ValueError(f"{problem}; {remedy}")


def _short(name: str, value: Any) -> str:
    """Returns a value, of a digest or many classes the beginning."""
    text = str(value)
    return f"{text[:40]}…" if name.startswith("data.") and len(text) > 50 else text


def _check_types(path: Path, values: Json) -> None:
    """Raises ValueError that names the first value of the wrong type; whole numbers are at least 1."""
    kinds = {**get_type_hints(TrainConfig), "epochs": int, "kernel_size": int, "data_dir": str | None}
    kinds |= flat({"ingredients": get_type_hints(Recipe), "data": _DATA})
    for name in values.keys() & kinds.keys():
        value, kind = values[name], kinds[name]
        if not fits(value, kind) or (kind is int and value < (0 if name in _FROM_ZERO else 1)):
            words = kind.__name__ if type(kind) is type else str(kind).removeprefix("typing.")
            problem = f"{name} in {path} must be {words}, got {value!r}"
            raise ValueError(f"{problem}; put back the run's own config.json, or train in another --workdir")
