"""Loads trained networks from a file, by the name of a released one, or from a run of `experiments.train`."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from lowcost import __version__
from lowcost.deploy.input_steps import preprocessing
from lowcost.deploy.packaged import Loaded, as_tuples, decode
from lowcost.nn.architectures import network
from lowcost.nn.networks import Network
from lowcost.nn.structure import variable_shapes
from lowcost.terminal import first_line
from lowcost.train import checkpoint, processes
from lowcost.train.mesh import place
from lowcost.train.state import TrainState, count_weights

Json = dict[str, Any]

RELEASED = Path(__file__).parents[1] / "models"
"""Folder of the released networks."""
LIMITS = "No decisions about people, and no images unlike the training images, without an evaluation for that use."
_REMEDY = "put back the run's own config.json, or choose another work directory"
_NOTHING: Json = dict.fromkeys(("key", "opt_state", "metrics", "skipped", "skipped_in_a_row"))
"""The parts of a state that only training needs."""


def load(source: str | os.PathLike[str]) -> Loaded:
    """Directory, file or name → network, variables, classes, preprocessing: loads a trained network.

    Not in the paper. Nothing is unpickled, and the network is not run. A run must be intact: its newest valid
    checkpoint is verified as if training resumed from it. Of several seeds the first is loaded.

    Args:
        source: the work directory of a run of `experiments.train`, finished or not; a .safetensors file of `save`; or
            the name of a released network, which comes with the package.

    Returns:
        The network, its variables, and what their users need.

    Raises:
        FileNotFoundError: there is no such file, directory or name, or the directory holds no checkpoint.
        ValueError: the source is damaged, of a newer format, or of another network than it states.
        OSError: a file cannot be read, or JAX finds no device.
    """
    path = Path(source)
    if path.is_dir():
        return load_run(path)
    processes.devices()
    released = {file.stem: file for file in sorted(RELEASED.glob("*.safetensors"))}
    if not path.exists():
        path = released.get(str(source), path)
    if not path.exists():
        expected = "source must be a work directory, a .safetensors file, or the name of a released network"
        raise FileNotFoundError(f"{expected}, got {path}; released are {', '.join(released) or 'none'}")
    return decode(path.read_bytes(), str(path))


def load_run(workdir: Path, *, finished: bool = False, index: int = 0) -> Loaded:
    """Returns the network of a run's newest valid checkpoint; reads neither its data set nor its optimiser.

    Args:
        workdir: its work directory.
        finished: refuse a run that has not finished.
        index: of several seeds, the number of the network to return, from 0.

    Raises:
        ValueError, OSError: as in `load`.
    """
    processes.devices()
    config = flat(configuration(workdir))
    names = ("h", "kernel_size", "boundary", "zero_mean", "decoder", "steps_per_block", "dtype")
    options: Json = {name: config[name] for name in names if name in config}
    options["head"] = "pixels" if config.get("task") == "pixels" else "class"
    options["fixed_scale"] = config.get("norm_budget") is not None
    options |= {"moments": as_tuples(config.get("data.moments")), "masked": config.get("data.masked", False)}
    try:
        config["seed"] += index
        net = network(config["architecture"], config["width"], len(config["data.classes"]), **options)
        like, steps = _state(net, config), config["epochs"] * (config["data.train"] // config["batch_size"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(f"config.json in {workdir} is not of this version ({reason}); {_REMEDY}") from error
    restored = newest(workdir, like, steps, finished=finished)
    variables = restored.state.chosen
    if (seeds := config.get("seeds", 1)) > 1:
        variables = jax.device_put(jax.tree.map(lambda x: np.asarray(x)[index], variables))
    about: Json = result_of(workdir) or {}
    if about.get("steps", steps) != restored.step:  # it is of a later checkpoint, which is damaged
        about = {}
    try:
        card = _card(config, about, restored.step, count_weights(variables["params"]), index)
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"result.json in {workdir} is damaged ({first_line(error)}); delete it, and train again to write it"
        ) from error
    shape, dtype = config["data.image_shape"], config.get("data.dtype", "uint8")
    inputs: Json = {"standardises": net.moments is not None, "masked": net.masked, "length": config.get("length")}
    return Loaded(
        net=net,
        variables=variables,
        classes=tuple(config["data.classes"]),
        image_shape=tuple(shape),
        task=config.get("task", "classes"),
        temperature=(temperatures(workdir, seeds, restored.step) or [1.0] * seeds)[index],
        scale=as_tuples(config.get("data.scale")),
        preprocessing=preprocessing(shape, dtype, **inputs),
        dtype=dtype,
        card=card,
    )


def _state(net: Network, config: Json) -> TrainState:
    """Returns shapes, dtypes and shardings of the parts of a state that make the variables."""
    variables, step = variable_shapes(net, config["data.image_shape"]), jax.eval_shape(lambda: jnp.int32(0))
    average = None if config.get("ingredients.average") is None else variables
    keeps_best = config.get("keep_best") or config.get("patience") is not None
    best = {"variables": variables} if keeps_best else None
    state = TrainState(step=step, **variables, average=average, best=best, **_NOTHING)
    seeds, device = config.get("seeds", 1), SingleDeviceSharding(jax.local_devices()[0])
    leading = (seeds,) if seeds > 1 else ()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=device), state)


def _card(config: Json, result: Json, steps: int, weights: int, index: int) -> dict[str, str]:
    """Returns how a network was trained, how accurate it is, and its limits."""
    card = {"network": f"{config['architecture']} {'-'.join(map(str, config['width']))}"}
    names = ("dataset", "recipe", "init_from", "norm_budget", "epochs", "seed")
    card |= {name: str(config[name]) for name in names if config.get(name) is not None}
    card |= {"teacher": ", ".join(config["teacher"])} if config.get("teacher") else {}
    card |= {"steps": str(steps), "weights": str(weights)}
    card |= {"epochs": str(result["epochs"])} if "epochs" in result else {}
    if result.get("chosen", {}).get("by", "last epoch") != "last epoch":
        card["chosen"] = f"epoch {result['chosen']['epochs'][index]} by {result['chosen']['by']}"
    lists = {"test_accuracy": "test_accuracies", "test_mean_iou": "test_mean_ious", "test_loss": "test_losses"}
    for figure, numbers in lists.items():
        if result.get(numbers):
            card[figure] = str(result[numbers][index])
    return {**card, "lowcost": __version__, "limits": LIMITS}


def newest(workdir: Path, like: TrainState, steps: int, *, finished: bool = False) -> checkpoint.Restored:
    """Returns the newest valid checkpoint, whose state has None in place of what only training needs.

    Args:
        workdir: of a run.
        like: a state with the shapes, dtypes and shardings to restore to.
        steps: number of steps of the whole run, unless it ended early.
        finished: refuse a run that has not finished.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
        ValueError: all are damaged, or of another run; or result.json is of another state.
    """
    saved = checkpoint.Checkpoints(workdir / "checkpoints", run=identity(workdir), owned=False)
    try:
        restored = saved.read_newest(like.replace(**_NOTHING))
    finally:
        saved.close()
    if restored is None:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; train first")
    state = jax.tree.map(lambda x, y: place(x, y.sharding), restored.state, like.replace(**_NOTHING))
    restored = restored._replace(state=state)
    result = result_of(workdir)
    steps = steps if result is None else result.get("steps", steps)
    if finished:
        _check_finished(workdir, restored.step, steps)
    if restored.step == steps and result is not None and result["digest"] != restored.digest:
        problem = f"{workdir / 'result.json'} must be of the run's last checkpoint, got the digest of another state"
        raise ValueError(f"{problem}; put back the run's own, or remove it and run its training again")
    return restored


def identity(workdir: Path) -> Json:
    """Returns what distinguishes a run from all others: its seed, and a digest of config.json without data_dir."""
    content = configuration(workdir)
    del content["data_dir"]
    text = json.dumps(content, sort_keys=True).encode()
    return {"seed": content["seed"], "configuration": hashlib.sha256(text).hexdigest()[:16]}


def configuration(workdir: Path) -> Json:
    """Returns the content of config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run, no config.json; train in this work directory first")
    content = _json(path, _REMEDY)
    parts = [content.get(name) for name in ("ingredients", "data", "settings")] + [content.get("methods", {})]
    if not {"data_dir", "seed"} <= content.keys() or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path} is no configuration of a run; {_REMEDY}")
    return content


def _check_finished(workdir: Path, step: int, steps: int) -> None:
    """Raises ValueError unless the run has finished and its newest valid checkpoint, of `step`, is its last."""
    remedy = "run its training again to the end"
    if not (workdir / "result.json").exists():
        raise ValueError(f"{workdir} has not finished training: its checkpoint is of step {step} of {steps}; {remedy}")
    if step != steps:
        problem = f"of step {steps}, is damaged, and the newest before it of step {step}"
        raise ValueError(f"the last checkpoint of {workdir}, {problem}; {remedy}")


def temperatures(workdir: Path, seeds: int, step: int) -> list[float] | None:
    """Returns the temperature of each network of a run, or None if its result.json holds none of this step.

    Args:
        workdir: of the run, whose result.json may be missing.
        seeds: number of its networks.
        step: of the checkpoint that is used; the last one may be damaged.

    Raises:
        ValueError: result.json is damaged.
    """
    result: Json = result_of(workdir) or {}
    found = result.get("temperatures")
    if found is None or result.get("steps", step) != step:
        return None
    numbers = isinstance(found, list) and all(type(t) in (int, float) and 0 < t < math.inf for t in found)
    if numbers and len(found) == seeds:
        return found
    expected = f"temperatures in {workdir / 'result.json'} must be a list of {seeds} numbers above 0"
    raise ValueError(f"{expected}, got {found!r}; put back the run's own result.json")


class Result(Json):
    """The content of a result.json.

    Raises:
        ValueError: it is damaged; also later, where a name is missing.
    """

    _remedy = "remove it and run the same training again, which writes it anew"

    def __init__(self, path: Path):
        super().__init__(_json(path, self._remedy))
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} must hold {name}, got none; {self._remedy}")


def result_of(workdir: Path) -> Result | None:
    """Returns the content of result.json, or None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = workdir / "result.json"
    return Result(path) if path.exists() else None


def flat(content: Json) -> Json:
    """Returns the content with the entries of inner dictionaries as data.classes or ingredients.schedule."""
    flat: Json = {}
    for key, value in content.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _json(path: Path, remedy: str) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; {remedy}")
    return content
