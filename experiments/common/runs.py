"""Turns a configuration into everything a run needs: data set, mesh, network, optimiser, compiled programs, state."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.common import distillation, fine_tuning, tuning
from experiments.common.budgets import projection_of
from experiments.common.compiled import keep_compiled
from experiments.common.config import TrainConfig, check_batch, check_counts, values
from experiments.common.datasets import CACHE, data_of
from experiments.common.description import check_data
from experiments.common.objective import figures, loss_of
from experiments.common.recipes import Recipe, recipe_named
from experiments.common.setup import Setup
from experiments.common.workdir import read, recorded_kernel_size
from lowcost import data, nn
from lowcost.data.batches import random_rows
from lowcost.deploy import loading
from lowcost.deploy.loading import configuration, load_run, newest
from lowcost.deploy.packaged import Loaded, as_tuples
from lowcost.methods import Point, decided_by
from lowcost.nn.networks import least_points
from lowcost.nn.norm_budget import keep_norms
from lowcost.nn.structure import variable_shapes
from lowcost.scaling import Moments, to_unit_range
from lowcost.train.distillation import distilled
from lowcost.train.losses import mixed
from lowcost.train.mesh import data_mesh, replicated, use_every_core
from lowcost.train.state import TrainState, create_state, keep_best
from lowcost.train.step import make_eval_step, make_train_step, repeat

_Model = tuple[nn.Network, optax.GradientTransformation, Callable[[], TrainState]]

WHITENING_IMAGES = 1000
"""Number of training images from which the whitened opening layer is computed."""


def prepare(config: TrainConfig, recipe: Recipe | None = None, of_run: dict[str, Any] | None = None) -> Setup:
    """Loads the data and builds the network, checking that they fit; trains and compiles nothing.

    Args:
        config: the configuration of the run.
        recipe: replaces the recipe that the configuration names.
        of_run: what config.json holds of the data set of a trained network, which keeps its moments.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    recipe = changed(recipe or recipe_named(config.recipe), config)
    config = dataclasses.replace(config, epochs=recipe.epochs if config.epochs is None else config.epochs)
    fine_tuning.check(config)
    check_counts(config, "batch_size", "epochs", "evaluate_every", "keep", "seeds", "train_images", "patience")
    if not 0 <= config.validation_share < 1:
        raise ValueError(f"--validation-share must be from 0 to below 1, got {config.validation_share}")
    if of_run is None and not 0 <= config.seed <= 2**32 - config.seeds:  # JAX's keys have no more bits
        raise ValueError(f"--seed must be from 0 to {2**32 - config.seeds}, got {config.seed}")
    _check_width(config)
    use_every_core(config.batch_size // (config.cluster.num_processes or 1))
    mesh = data_mesh(config.batch_size, all_devices=of_run is None)
    jax.set_mesh(mesh)
    dataset = data_of(config, trained=of_run is not None)
    config = dataclasses.replace(config, task=dataset.task)  # labels of points are found in the data
    config = dataclasses.replace(config, kernel_size=_kernel_size(config, dataset.image_shape))
    if config.decoder and config.task != "pixels":
        raise ValueError(f"--decoder needs the task pixels, got {config.task}; leave it out")
    distillation.check(config)
    keep_compiled(config.directory().parent / CACHE / "compiled")
    if of_run is None:
        check_batch(config.batch_size, len(dataset.train))
        return _build(config, recipe, dataset, mesh, dataset.moments)
    check_data(config.directory(), dataset, of_run)
    return _build(config, recipe, dataset, mesh, as_tuples(of_run.get("moments")))


def _check_width(config: TrainConfig) -> None:
    try:
        nn.block_channels(config.width)
    except ValueError as error:
        raise ValueError(f"--{error}; use A, B, C or numbers such as 8 16 32") from None


def _kernel_size(config: TrainConfig, image_shape: tuple[int, ...]) -> int:
    """Returns the points of the stencils per axis: as stated, of the run itself, of --init-from, or the default.

    Work directories are not loaded, because only process 0 can read checkpoints.
    """
    if config.kernel_size is not None:
        return config.kernel_size
    for workdir in (config.directory(), *([Path(config.init_from)] if config.init_from else [])):
        if (size := recorded_kernel_size(workdir)) is not None:
            return size
    if config.init_from is not None:
        with contextlib.suppress(ValueError, OSError):  # training reports the error when it reads the weights
            return loading.load(config.init_from).net.kernel_size
    least = least_points(5, len(nn.block_channels(config.width)), halves=True)
    fits = config.task != "pixels" and len(image_shape) == 3 and min(image_shape[:2]) >= least
    return 5 if fits and config.architecture.startswith("implicit") else 3


def changed(recipe: Recipe, config: TrainConfig) -> Recipe:
    """Returns the recipe with the ingredients that flags state.

    Raises:
        ValueError: a flag out of range.
    """
    stated = {name: x for name, x in values(config, "learning_rate", "label_smoothing").items() if x is not None}
    if not 0 < stated.get("learning_rate", 1) < math.inf:
        raise ValueError(f"--learning-rate must be positive, got {config.learning_rate}")
    if not 0 <= stated.get("label_smoothing", 0) < 1:
        raise ValueError(f"--label-smoothing must be from 0 to below 1, got {config.label_smoothing}")
    return dataclasses.replace(recipe, **stated)


def _build(config: TrainConfig, recipe: Recipe, dataset: data.Dataset, mesh: Mesh, moments: Moments | None) -> Setup:
    options: dict[str, Any] = {"moments": moments, "masked": dataset.masked}
    if recipe.whitening:
        some = dataset.train.images[random_rows(len(dataset.train), WHITENING_IMAGES)]
        options["opening_init"] = nn.initializers.patch_whitening(_values(to_unit_range(some), **options))
    loss, extra = loss_of(config, recipe.label_smoothing, dataset)
    changing = dataclasses.replace(recipe, mixed=0.0) if dataset.task == "pixels" else recipe
    mixes = changing.mixes(dataset.keeps, dataset.masked)
    train_loss = partial(mixed, loss=loss) if mixes else loss
    if config.teacher:
        train_loss = partial(distilled, loss=train_loss, share=config.distill)
    net, optimizer, initial_state = _model(config, recipe, dataset, **options)
    steps_per_epoch = max(1, len(dataset.train) // config.batch_size)
    augment = changing.augmentation(dataset.keeps, dataset.moments, dataset.masked)
    changes: dict[str, Any] = {"average": recipe.average, "loss": train_loss}
    if dataset.task == "pixels":
        changes["augment_labels"] = recipe.label_augmentation(dataset.keeps, len(dataset.classes))
    elif mixes:
        changes["augment_labels"] = recipe.label_mixing(dataset.image_shape[:-1])
    train_step = make_train_step(net, optimizer, augment, steps_per_epoch, **changes)
    infer = partial(nn.infer, net)
    eval_step, apply = make_eval_step(net, loss, nn.infer), lambda variables, x: infer(variables, to_unit_range(x))
    methods: dict[str, str] = {}
    decided = decided_by(lambda point: methods.get(str(point)))
    train_step, eval_step, apply = decided(train_step), decided(eval_step), decided(apply)
    if config.seeds > 1:
        train_step = _of_each_seed(train_step)
        eval_step, apply = _of_each_seed(eval_step, shared=True), _of_each_seed(apply, shared=True)
    jit = partial(jax.jit, out_shardings=replicated(mesh))
    setup = Setup(
        config=config,
        recipe=recipe,
        dataset=dataset,
        mesh=mesh,
        net=net,
        steps_per_epoch=steps_per_epoch,
        train_steps=jit(repeat(train_step), donate_argnums=0),
        eval_step=jit(eval_step),
        apply=jit(apply),
        keep_best=jit(keep_best),
        initial_state=jit(initial_state),
        extra=extra,
        methods=methods,
    )
    setup.abstract_state()  # raises where the network cannot take the images
    return setup


def _of_each_seed(function: Callable[..., Any], *, shared: bool = False) -> Callable[..., Any]:
    """Returns the function of the states of several seeds, and of the batch of each, or one that is shared.

    A CPU takes one seed after another: all at once they take longer there, and more memory.
    """

    def of_each(states: Any, *batch: Any, **teachers: Any) -> Any:
        def of_one(seed: tuple[Any, ...]) -> Any:
            return function(*seed, *(batch if shared else ()), **teachers)

        seeds = (states,) if shared else (states, *batch)
        return jax.lax.platform_dependent(seeds, cpu=partial(jax.lax.map, of_one), default=jax.vmap(of_one))

    return of_each


def _values(images: np.ndarray, moments: Moments | None, masked: bool) -> np.ndarray:
    """Returns the images as the opening layer sees them: without the mask channel, standardised, 0 on padding."""
    standard = images if moments is None else data.to_standard_units(images, moments, masked)
    return standard[..., :-1] if masked else standard


def _model(config: TrainConfig, recipe: Recipe, dataset: data.Dataset, **options: Any) -> _Model:
    """Returns the network, the optimiser, and () → the state before the first step, of every seed.

    Args:
        config: the configuration, with the number of epochs.
        recipe: how to train.
        dataset: images and labels.
        options: of the network.
    """
    options |= values(
        config, "h", "reach", "kernel_size", "boundary", "zero_mean", "decoder", "steps_per_block", "remat"
    )
    options["head"] = "pixels" if config.task == "pixels" else "class"
    options["fixed_scale"] = config.norm_budget is not None
    classes = len(dataset.classes)
    net = nn.network(config.architecture, config.width, classes, dtype=jnp.dtype(config.dtype), **options)
    optimizer = recipe.transformation(config.epochs or 0, len(dataset.train) // config.batch_size)
    if config.init_from is not None:
        optimizer = fine_tuning.slowed(optimizer, config)
    project = projection_of(config, net, dataset.image_shape)
    if project is not None:
        optimizer = optax.chain(optimizer, keep_norms(project))

    def create(key: jax.Array) -> TrainState:
        keeps = {"average": recipe.average is not None, "best": config.keeps_best}
        state = create_state(net, optimizer, key, dataset.image_shape, figures=figures(config, classes), **keeps)
        if project is None:
            return state
        return fine_tuning.start(state, {"params": project(state.params), "batch_stats": {}})

    def initial_state() -> TrainState:
        keys = [jax.random.key(config.seed + i) for i in range(config.seeds)]
        return create(keys[0]) if config.seeds == 1 else jax.vmap(create)(jnp.stack(keys))

    return net, optimizer, initial_state


def methods_of(ready: Setup) -> dict[str, str]:
    """Returns the methods that a run has recorded; for a new run on a CPU those that `tuning.chosen` chooses."""
    if (ready.config.directory() / "config.json").exists():
        return dict(configuration(ready.config.directory()).get("methods", {}))
    points: set[Point] = set()
    with decided_by(points.add):
        variable_shapes(ready.net, ready.dataset.image_shape)
    return tuning.chosen(points) if ready.mesh.devices.flat[0].platform == "cpu" else {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Loaded):
    """A network with its weights, without its data, and the configuration of its run."""

    config: TrainConfig


def trained(workdir: Path, *, to_the_end: bool = False) -> Trained:
    """Returns the network of a run's newest valid checkpoint, without reading its data set.

    Args:
        workdir: its work directory.
        to_the_end: refuse a run that has not finished.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    config, _ = read(workdir)
    return Trained(**vars(load_run(workdir, finished=to_the_end)), config=config)


def reopen(workdir: Path, data_dir: Path | None, *, to_the_end: bool = False) -> tuple[Setup, TrainState]:
    """Returns the set-up and the newest valid state of a run, which may still be training.

    Args:
        workdir: its work directory.
        data_dir: the folder of its images now, if they were moved.
        to_the_end: refuse a run that has not finished.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    config, recipe = read(workdir)
    config = dataclasses.replace(config, class_weights=None)  # which only training needs, and the file may be gone
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    ready = prepare(config, recipe, configuration(workdir)["data"])
    ready.methods.update(methods_of(ready))
    return ready, newest(workdir, ready.abstract_state(), ready.steps, finished=to_the_end).state
