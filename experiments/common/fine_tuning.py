"""Starts training from the weights of another network, `--init-from`.

Moments are no weights: the network standardises floats by the moments of the new training data.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.budgets import projection_of
from experiments.common.config import TrainConfig
from lowcost import data, nn
from lowcost.deploy.loading import configuration, load
from lowcost.terminal import printable
from lowcost.train import checkpoint
from lowcost.train.state import TrainState

NEW = "classifier"
"""The layer that starts anew where the classes differ, and always learns at the full rate."""


def check(config: TrainConfig) -> None:
    """Raises ValueError for flags that need --init-from, or have no effect with it, and for a wrong --loaded-rate."""
    if config.init_from is not None and config.reach:
        raise ValueError(f"--reach must be left out with --init-from, which loads the stencils, got {config.reach:g}")
    if config.init_from is None and (config.freeze or config.loaded_rate != 1):
        raise ValueError("--freeze and --loaded-rate need --init-from, got none; add it, or leave them out")
    if not 0 <= config.loaded_rate <= 1:
        raise ValueError(f"--loaded-rate must be from 0 to 1, got {config.loaded_rate}")


def slowed(optimizer: optax.GradientTransformation, config: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimiser with updates times --loaded-rate, of the classifier unchanged, of frozen layers 0.

    Raises:
        ValueError: when it is initialised: no layer has a name that --freeze states.
    """

    def init(params: Any) -> optax.OptState:
        for name in _frozen(config):
            if not any(_begins(layer, name) for layer in params):
                got = f"got {name!r}; the layers are {', '.join(params)}"
                raise ValueError(f"--freeze must name layers by the beginnings of their names, {got}")
        return optax.EmptyState()

    def factor(layer: str) -> float:
        if any(_begins(layer, name) for name in _frozen(config)):
            return 0.0
        return 1.0 if layer == NEW else config.loaded_rate

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return {layer: optax.tree.scale(factor(layer), tree) for layer, tree in updates.items()}, state

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def _frozen(config: TrainConfig) -> list[str]:
    """Returns the names after --freeze, which commas or spaces separate."""
    return [name for words in config.freeze for name in words.split(",")]


def _begins(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}_")


def source(config: TrainConfig, net: nn.Network, dataset: data.Dataset) -> tuple[str, dict[str, Any] | None]:
    """Returns the sha256 of the weights to start from, and the weights; in process 0.

    A run with checkpoints no longer needs them: they are None, and their sha256 is that in its config.json.

    Raises:
        ValueError: as in `weights`.
    """
    workdir = config.directory()
    if checkpoint.saved_steps(workdir / "checkpoints"):
        return configuration(workdir)["data"].get("init_from", ""), None
    loaded = weights(config, net, dataset)
    return checkpoint.digest(jax.tree.map(jnp.asarray, loaded)), loaded


def summary(config: TrainConfig, loaded: dict[str, Any]) -> str:
    """Returns a line about what is loaded and what is frozen."""
    layers = loaded["params"]
    frozen = [layer for layer in layers if any(_begins(layer, name) for name in _frozen(config))]
    new = "" if NEW in layers else "; the classifier starts anew"
    line = f"starting from {printable(config.init_from)}: {len(layers)} layers loaded{new}"
    return f"{line}; frozen: {', '.join(frozen)}" if frozen else line


def weights(config: TrainConfig, net: nn.Network, dataset: data.Dataset) -> dict[str, Any]:
    """Returns the variables to start from, by collection and layer; without the classifier unless the classes agree.

    Raises:
        ValueError, OSError: what --init-from names cannot be loaded, or is another network.
    """
    assert config.init_from is not None
    try:
        network = load(config.init_from)
    except (ValueError, OSError) as error:
        raise ValueError(f"--init-from {config.init_from} cannot be loaded: {error}") from error
    ours, theirs = _described(net, dataset.image_shape), _described(network.net, network.image_shape)
    if name := next((name for name in ours if ours[name] != theirs[name]), ""):
        problem = f"--init-from {config.init_from} must hold a network with {name} {ours[name]}"
        raise ValueError(f"{problem}, got {theirs[name]}; change the flags or the data, or choose another network")
    known = dataset.task != "values" and (network.task, tuple(network.classes)) == (dataset.task, dataset.classes)
    loaded = {
        kind: {layer: leaves for layer, leaves in layers.items() if known or layer != NEW}
        for kind, layers in network.variables.items()
    }
    if (project := projection_of(config, net, dataset.image_shape)) is not None:
        loaded["params"] = project(loaded["params"])
    return jax.device_get(loaded)


def _described(net: nn.Network, image_shape: tuple[int, ...]) -> dict[str, Any]:
    step: Any = net.step
    return {
        "--architecture": {kind: name for name, kind in nn.ARCHITECTURES.items()}[step.func],
        "--width": " ".join(map(str, nn.block_channels(net.channels))),
        "--kernel-size": net.kernel_size,
        "--steps-per-block": net.steps_per_block,
        "--h": step.keywords.get("h", 1.0),
        "--boundary": step.keywords.get("boundary", "periodic"),
        "--zero-mean": step.keywords.get("zero_mean", False),
        "--norm-budget": "a number" if net.fixed_scale else "none",
        "--decoder": net.decoder,
        "number of grid axes": len(image_shape) - 1,
        "mask": "yes" if net.masked else "no",
        "number of input channels": image_shape[-1] - net.masked,
    }


def start(state: TrainState, loaded: dict[str, Any]) -> TrainState:
    """Returns the state before the first step with the loaded variables, with several seeds in each of them."""

    def put(old: jax.Array, new: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(new, old.dtype), old.shape)

    first = {"params": state.params, "batch_stats": state.batch_stats}
    merged = {kind: {**layers, **loaded[kind]} for kind, layers in first.items()}
    variables = jax.tree.map(put, first, merged)
    best = state.best and {**state.best, "variables": variables}
    return state.replace(**variables, average=state.average and variables, best=best)
