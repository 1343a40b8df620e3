"""From a configuration to everything a run needs: data set, mesh, network, optimiser, programs, state."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.common.compiled import keep_compiled
from experiments.common.config import TrainConfig
from experiments.common.recipes import RECIPES, Recipe
from experiments.common.workdir import Result, identity, read, shared
from lowcost import data, nn
from lowcost.train.checkpoint import Checkpoints
from lowcost.train.loop import first_step
from lowcost.train.mesh import data_mesh, replicated, use_every_core
from lowcost.train.processes import devices, differing
from lowcost.train.state import TrainState, create_state
from lowcost.train.step import make_eval_step, make_train_step, repeat, to_unit_range

CACHE = ".lowcost-cache"


class Setup(NamedTuple):
    """What training and evaluation share.

    Attributes:
        config: with the number of epochs.
        recipe: how to train.
        dataset: images and labels.
        mesh: all devices; already set as JAX's mesh.
        net: the network.
        steps_per_epoch: whole batches in the training images.
        train_steps: jitted, (state, n, *batches) → state; the state is donated.
        eval_step: jitted, see `make_eval_step`.
        initial_state: jitted, () → the state before the first step, on all devices.
    """

    config: TrainConfig
    recipe: Recipe
    dataset: data.Dataset
    mesh: Mesh
    net: nn.Network
    steps_per_epoch: int
    train_steps: Callable[..., TrainState]
    eval_step: Callable[..., dict[str, jax.Array]]
    initial_state: Callable[[], TrainState]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        assert self.config.epochs is not None
        return self.config.epochs

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """Rows of the batch of a step, [B], or [seeds, B]."""
        config = self.config
        seed = config.seed if config.seeds == 1 else tuple(range(config.seed, config.seed + config.seeds))
        return data.batch_indices(seed, step, len(self.dataset.train), config.batch_size)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        sharding = replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(self.initial_state)
        )


def prepare(config: TrainConfig, recipe: Recipe | None = None) -> Setup:
    """Load the data and build the network, checking that they fit; nothing is trained or compiled yet.

    Args:
        config: the run's.
        recipe: in place of the one that the configuration names.

    Raises:
        ValueError, OSError: what the user can mend, in one line.
    """
    recipe = recipe or RECIPES[config.recipe]
    config = dataclasses.replace(config, epochs=recipe.epochs if config.epochs is None else config.epochs)
    for name in ("batch_size", "epochs", "evaluate_every", "keep", "seeds", "train_images"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 <= config.seed < 2**63 - config.seeds:
        raise ValueError(f"--seed must be from 0 to 2⁶³ - 1, got {config.seed}")
    use_every_core(config.batch_size // (config.cluster.num_processes or 1))
    mesh = data_mesh(config.batch_size)
    jax.set_mesh(mesh)
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=image_cache(config.directory()),
        download=config.download,
        max_pixels=config.max_pixels,
    )
    if config.train_images is not None:
        dataset = dataset.sample(config.train_images)
    steps_per_epoch = len(dataset.train) // config.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"--batch-size {config.batch_size} is larger than the {len(dataset.train)} training images of "
            f"{dataset.name}; use a smaller one"
        )
    keep_compiled(config.directory().parent / CACHE / "compiled")
    return _build(config, recipe, dataset, mesh, steps_per_epoch)


def image_cache(workdir: Path) -> Path | None:
    """Returns the folder beside a work directory for decoded images; None, for memory, where nothing can be written."""
    cache = workdir.absolute().parent / CACHE
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return cache if os.access(there, os.W_OK) else None


def _build(config: TrainConfig, recipe: Recipe, dataset: data.Dataset, mesh: Mesh, steps_per_epoch: int) -> Setup:
    assert config.epochs is not None
    options = {}
    if recipe.whitening:
        some = dataset.train.images[:: max(1, len(dataset.train) // 1000)]
        options["opening_init"] = nn.initializers.patch_whitening(to_unit_range(some))
    net = _network(config, len(dataset.classes), **options)
    optimizer = recipe.transformation(config.epochs, steps_per_epoch)
    augment = recipe.augmentation(dataset.flip)
    train_step = make_train_step(net, optimizer, augment, steps_per_epoch, average=recipe.average)
    eval_step = make_eval_step(net)
    if config.seeds > 1:
        train_step = jax.vmap(train_step)
        eval_step = jax.vmap(eval_step, in_axes=(0, None, None, None, 0))
    everywhere = replicated(mesh)
    setup = Setup(
        config,
        recipe,
        dataset,
        mesh,
        net,
        steps_per_epoch,
        train_steps=jax.jit(repeat(train_step), donate_argnums=0, out_shardings=everywhere),
        eval_step=jax.jit(eval_step, out_shardings=everywhere),
        initial_state=jax.jit(
            partial(_create, config, recipe, net, optimizer, dataset.image_shape), out_shardings=everywhere
        ),
    )
    setup.abstract_state()  # raises where the network cannot take the images
    return setup


def _network(config: TrainConfig, num_classes: int, **options: Any) -> nn.Network:
    return nn.network(
        config.architecture,
        config.width,
        num_classes,
        steps_per_block=config.steps_per_block,
        h=config.h,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        **options,
    )


def _create(
    config: TrainConfig,
    recipe: Recipe,
    net: nn.Network,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first step, of every seed."""

    def create(seed_key: jax.Array) -> TrainState:
        return create_state(net, optimizer, seed_key, image_shape, average=recipe.average is not None)

    if config.seeds == 1:
        return create(jax.random.key(config.seed))
    return jax.vmap(create)(jnp.stack([jax.random.key(config.seed + i) for i in range(config.seeds)]))


def describe(dataset: data.Dataset) -> dict[str, Any]:
    """Returns what must be the same for a run to resume: classes, image shape, counts, and every pixel and label."""
    return {
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "digest": dataset.digest,
    }


def settings() -> dict[str, Any]:
    """Returns JAX's settings that a result depends on."""
    names = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision")
    return {name: getattr(jax.config, name) for name in names}


def differing_fields(ready: Setup) -> list[str]:
    """Returns the names of what is not the same in all processes: code, configuration, recipe, data, settings."""
    code = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(data.__file__).parents[1]):
        for path in sorted(package.rglob("*.py")):
            code.update(path.read_bytes())
    versions = differing({"code": code.hexdigest(), "jax": jax.__version__})
    return versions or differing(
        {
            **shared(ready.config),
            **{f"ingredients.{name}": value for name, value in dataclasses.asdict(ready.recipe).items()},
            **{f"data.{name}": value for name, value in describe(ready.dataset).items()},
            **settings(),
        }
    )


class Trained(NamedTuple):
    """A network with its weights, without its data.

    Attributes:
        config: of its run.
        net: the network.
        variables: {"params", "batch_stats"}; of several seeds those of the first.
        classes: their names.
        image_shape: [H, W, C].
        step: optimiser steps done.
        steps: of the whole run.
    """

    config: TrainConfig
    net: nn.Network
    variables: dict[str, Any]
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    step: int
    steps: int


def trained(workdir: Path) -> Trained:
    """The network of a run's newest valid checkpoint, for which its data set need not be there.

    Raises:
        ValueError, OSError: what the user can mend, in one line.
    """
    config, recipe, about = read(workdir)
    assert config.epochs is not None
    devices()  # raises where there are none
    image_shape, steps_per_epoch = tuple(about["image_shape"]), about["train"] // config.batch_size
    net = _network(config, len(about["classes"]))
    optimizer = recipe.transformation(config.epochs, steps_per_epoch)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(partial(_create, config, recipe, net, optimizer, image_shape)),
    )
    steps = config.epochs * steps_per_epoch
    state = _newest(workdir, like, steps)
    variables = state.variables
    if config.seeds > 1:
        variables = jax.tree.map(lambda x: x[0], variables)
    return Trained(config, net, variables, tuple(about["classes"]), image_shape, first_step(state), steps)


def check_data(workdir: Path, dataset: data.Dataset, expected: dict[str, Any]) -> None:
    """ValueError unless the data set has the classes and the image shape of the run's."""
    got = describe(dataset)
    for field in ("classes", "image_shape"):
        if got[field] != expected[field]:
            raise ValueError(
                f"the run in {workdir} was trained on {field} {expected[field]}, the data has {got[field]}; "
                "name the folder that belongs to it with --data-dir"
            )


def _newest(workdir: Path, like: TrainState, steps: int) -> TrainState:
    """Step, weights and statistics of the newest valid checkpoint of a run of so many steps; the rest stays None."""
    saved = Checkpoints(workdir / "checkpoints", run=identity(workdir), owned=False)
    nothing = dict.fromkeys(("key", "opt_state", "metrics", "skipped", "skipped_in_a_row"))
    try:
        restored = saved.restore_newest(like.replace(**nothing))
    finally:
        saved.close()
    if restored is None:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; train first")
    result = workdir / "result.json"
    if restored.step == steps and result.exists() and Result(result)["digest"] != restored.digest:
        raise ValueError(
            f"{result} must be of the run's last checkpoint, got the digest of another state; put back the run's own "
            "result.json, or remove it and run its training again"
        )
    return restored.state


def check_finished(workdir: Path, step: int, steps: int) -> None:
    """ValueError unless the run has finished and its newest valid checkpoint, of `step`, is its last, of `steps`."""
    if not (workdir / "result.json").exists():
        raise ValueError(
            f"{workdir} has not finished training: its newest checkpoint is of step {step} of {steps}; "
            "run its training again to the end"
        )
    if step != steps:
        raise ValueError(
            f"the last checkpoint of {workdir}, of step {steps}, is damaged, and the newest before it of step {step}; "
            "run its training again to the end"
        )


def reopen(workdir: Path, data_dir: Path | None) -> tuple[Setup, TrainState]:
    """The set-up and newest valid state of a run, which may be training meanwhile.

    Args:
        workdir: its work directory.
        data_dir: where its pictures are now, if no longer where they were.

    Raises:
        ValueError, OSError: what the user can mend, in one line.
    """
    config, recipe, expected = read(workdir)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    ready = prepare(config, recipe)
    check_data(workdir, ready.dataset, expected)
    return ready, _newest(workdir, ready.abstract_state(), ready.steps)
