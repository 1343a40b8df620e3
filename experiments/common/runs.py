"""Turns a configuration into everything a run needs: data set, mesh, network, optimiser, compiled programs, state."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, Sharding

from experiments.common import distillation, fine_tuning, tuning
from experiments.common.budgets import projection_of
from experiments.common.compiled import keep_compiled
from experiments.common.config import TrainConfig, check_counts, values
from experiments.common.objective import figures, loss_of
from experiments.common.recipes import Recipe, recipe_named
from experiments.common.workdir import read, shared
from lowcost import data, nn
from lowcost.data.dataset import Moments
from lowcost.deploy.loading import configuration, flat, load_run, newest
from lowcost.deploy.packaged import Loaded, as_tuples, variable_shapes
from lowcost.methods import Point, decided_by
from lowcost.nn.norm_budget import keep_norms
from lowcost.train import loop, processes
from lowcost.train.distillation import distilled
from lowcost.train.mesh import data_mesh, place, replicated, shard_batch, use_every_core
from lowcost.train.metrics_log import Metrics
from lowcost.train.state import TrainState, create_state, keep_best
from lowcost.train.step import make_eval_step, make_train_step, repeat, to_unit_range

_Model = tuple[nn.Network, optax.GradientTransformation, Callable[[], TrainState]]

CACHE = ".lowcost-cache"
WHITENING_IMAGES = 1000
"""Number of training images from which the whitened opening layer is computed."""


class Setup(NamedTuple):
    """What training and evaluation share.

    Attributes:
        config: the configuration, with the number of epochs.
        recipe: how to train, with what the flags replace.
        dataset: images and labels.
        mesh: all devices; already set as JAX's mesh.
        net: the network.
        steps_per_epoch: whole batches in the training images.
        train_steps: jitted, (state, n, *batches) → state; the state is donated. With --teacher it also takes
            the keyword `teachers`.
        eval_step: jitted, see `make_eval_step`.
        apply: jitted, (variables, images of the data set) → outputs.
        keep_best: jitted, see `state.keep_best`.
        initial_state: jitted, () → the state before the first step, on all devices.
        extra: what identifies the run besides the data set, see `describe`.
        methods: the methods on CPUs by point, see `methods_of`; filled in before a program is traced.
        loaded: the weights to start from, see `fine_tuning.weights`.
    """

    config: TrainConfig
    recipe: Recipe
    dataset: data.Dataset
    mesh: Mesh
    net: nn.Network
    steps_per_epoch: int
    train_steps: Callable[..., TrainState]
    eval_step: Callable[..., dict[str, jax.Array]]
    apply: Callable[..., jax.Array]
    keep_best: Callable[..., TrainState]
    initial_state: Callable[[], TrainState]
    extra: dict[str, Any]
    methods: dict[str, str]
    loaded: dict[str, Any] | None = None

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return self.config.epochs or 0

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """Returns the rows of the batch of a step, [B], or [seeds, B]."""
        seed, seeds = self.config.seed, self.config.seeds
        either = seed if seeds == 1 else tuple(range(seed, seed + seeds))
        return data.batch_indices(either, step, len(self.dataset.train), self.config.batch_size)

    def start(self) -> TrainState:
        """Returns the state before the first step, with the weights of --init-from if there are any."""
        state = self.initial_state()
        if self.loaded is None:
            return state
        return jax.jit(fine_tuning.start, out_shardings=replicated(self.mesh))(state, self.loaded)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the state."""
        return abstract(self.initial_state, replicated(self.mesh))

    def evaluate(
        self, variables: Any, images: np.ndarray | None = None, labels: np.ndarray | None = None, **options: Any
    ) -> Metrics | None:
        """Returns the mean metrics of images with labels, by default all test images; see `evaluate_all`."""
        test = self.dataset.test
        images, labels = test.images if images is None else images, test.labels if labels is None else labels
        options |= {"batch_size": self.config.batch_size, "mesh": self.mesh}
        return loop.evaluate_all(self.eval_step, variables, images, labels, **options)

    def validate(self, state: TrainState) -> tuple[Metrics, TrainState]:
        """Returns the mean metrics of the validation images, and the state with the best variables so far, if kept.

        The best epoch has the highest mean IoU, without one the highest accuracy, or without both the lowest loss.
        """
        part = self.dataset.validation
        assert part is not None
        metrics = self.evaluate(state.variables, part.images, part.labels)
        assert metrics is not None
        if state.best:
            score = np.asarray(metrics.get("mean_iou", metrics.get("accuracy", -metrics["loss"])), np.float32)
            epoch = np.full(score.shape, loop.first_step(state) // self.steps_per_epoch, np.int32)
            state = self.keep_best(state, *(place(x, replicated(self.mesh)) for x in (score, epoch)))
        return metrics, state

    def outputs(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Returns the outputs of each network for images of the data set, float32 [seeds, N, K], or of each point."""
        seeds, size = self.config.seeds, self.config.batch_size
        parts = []
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size).clip(max=len(images) - 1)  # one program serves the last batch too
            outputs = np.asarray(self.apply(variables, *shard_batch(self.mesh, images[rows])), np.float32)
            parts.append(outputs if seeds > 1 else outputs[None])
        return np.concatenate(parts, axis=1)[:, : len(images)]


def prepare(config: TrainConfig, recipe: Recipe | None = None, of_run: dict[str, Any] | None = None) -> Setup:
    """Loads the data and builds the network, checking that they fit; trains and compiles nothing.

    Args:
        config: the configuration of the run.
        recipe: replaces the recipe that the configuration names.
        of_run: what config.json holds of the data set of a trained network, which keeps its moments.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    recipe = _changed(recipe or recipe_named(config.recipe), config)
    config = dataclasses.replace(config, epochs=recipe.epochs if config.epochs is None else config.epochs)
    fine_tuning.check(config)
    check_counts(config, "batch_size", "epochs", "evaluate_every", "keep", "seeds", "train_images", "patience")
    if not 0 <= config.validation_share < 1:
        raise ValueError(f"--validation-share must be from 0 to below 1, got {config.validation_share}")
    if not 0 <= config.seed < 2**63 - config.seeds:
        raise ValueError(f"--seed must be from 0 to 2⁶³ - 1, got {config.seed}")
    _check_width(config)
    use_every_core(config.batch_size // (config.cluster.num_processes or 1))
    mesh = data_mesh(config.batch_size)
    jax.set_mesh(mesh)
    dataset = _parts(config, load(config))
    config = dataclasses.replace(config, task=dataset.task)  # labels of points are found in the data
    if config.decoder and config.task != "pixels":
        raise ValueError(f"--decoder needs the task pixels, got {config.task}; leave it out")
    distillation.check(config)
    if config.batch_size > len(dataset.train):
        largest = f"the {len(dataset.train)} training images of {dataset.name}"
        raise ValueError(f"--batch-size must be at most {largest}, got {config.batch_size}; use a smaller one")
    keep_compiled(config.directory().parent / CACHE / "compiled")
    if of_run is None:
        return _build(config, recipe, dataset, mesh, dataset.moments)
    check_data(config.directory(), dataset, {"dtype": "uint8", "masked": False, **of_run})
    return _build(config, recipe, dataset, mesh, as_tuples(of_run.get("moments")))


def _check_width(config: TrainConfig) -> None:
    try:
        nn.block_channels(config.width)
    except ValueError as error:
        raise ValueError(f"--{error}; use A, B, C or numbers such as 8 16 32") from None


def _changed(recipe: Recipe, config: TrainConfig) -> Recipe:
    """Returns the recipe with the learning rate that a flag states."""
    if config.learning_rate is None:
        return recipe
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"--learning-rate must be positive, got {config.learning_rate}")
    return dataclasses.replace(recipe, learning_rate=config.learning_rate)


def _parts(config: TrainConfig, dataset: data.Dataset) -> data.Dataset:
    """Returns the data set with the parts and the permission to flip that the flags ask for."""
    if config.train_images is not None:
        dataset = dataset.sample(config.train_images)
    if config.validation_share:
        dataset = dataset.hold_out(config.validation_share)
    if config.keeps_best and dataset.validation is None:
        problem = "--keep-best and --patience need validation images, got none"
        raise ValueError(f"{problem}; add --validation-share 0.1, or images in DIR/val")
    if config.flip is None:
        return dataset
    others = tuple(change for change in dataset.keeps if change != "flip")
    return dataclasses.replace(dataset, keeps=("flip", *others) if config.flip == "horizontal" else others)


def load(config: TrainConfig) -> data.Dataset:
    """Returns all images of a run's data set, decoded or from the cache beside its work directory."""
    if config.dataset not in ("folder", "arrays") and config.test_share != TrainConfig.test_share:
        raise ValueError(f"--test-share needs the data set folder or arrays, got {config.dataset}; leave it out")
    options = values(config, "data_dir", "image_size", "download", "max_pixels", "test_share", "task")
    options |= values(config, "grid_axes", "length")
    return data.load(config.dataset, cache_dir=image_cache(config.directory()), **options)


def image_cache(workdir: Path) -> Path | None:
    """Returns the folder for decoded images beside a work directory, or None where nothing can be written."""
    cache = workdir.absolute().parent / CACHE
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return cache if os.access(existing, os.W_OK) else None


def _build(config: TrainConfig, recipe: Recipe, dataset: data.Dataset, mesh: Mesh, moments: Moments | None) -> Setup:
    options: dict[str, Any] = {"moments": moments, "masked": dataset.masked}
    if recipe.whitening:
        some = dataset.train.images[:: max(1, len(dataset.train) // WHITENING_IMAGES)]
        options["opening_init"] = nn.initializers.patch_whitening(_values(to_unit_range(some), **options))
    loss, extra = loss_of(config, dataset)
    train_loss = partial(distilled, loss=loss, share=config.distill) if config.teacher else loss
    net, optimizer, initial_state = _model(config, recipe, describe(dataset), **options)
    steps_per_epoch = len(dataset.train) // config.batch_size
    augment = recipe.augmentation(dataset.keeps, dataset.moments, dataset.masked)
    changes: dict[str, Any] = {"average": recipe.average, "loss": train_loss}
    if dataset.task == "pixels":
        changes["augment_labels"] = recipe.label_augmentation(dataset.keeps, len(dataset.classes))
    train_step = make_train_step(net, optimizer, augment, steps_per_epoch, **changes)
    eval_step, apply = make_eval_step(net, loss), lambda variables, x: net.apply(variables, to_unit_range(x))
    methods: dict[str, str] = {}
    decided = decided_by(lambda point: methods.get(str(point)))
    train_step, eval_step, apply = decided(train_step), decided(eval_step), decided(apply)
    if config.seeds > 1:
        train_step = _of_each_seed(train_step)
        eval_step, apply = _of_each_seed(eval_step, shared=True), _of_each_seed(apply, shared=True)
    jit = partial(jax.jit, out_shardings=replicated(mesh))
    train_steps = jit(repeat(train_step), donate_argnums=0)
    programs = (train_steps, jit(eval_step), jit(apply), jit(keep_best), jit(initial_state))
    setup = Setup(config, recipe, dataset, mesh, net, steps_per_epoch, *programs, extra, methods)
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


def _model(config: TrainConfig, recipe: Recipe, about: dict[str, Any], **options: Any) -> _Model:
    """Returns the network, the optimiser, and () → the state before the first step, of every seed.

    Args:
        config: the configuration, with the number of epochs.
        recipe: how to train.
        about: the data set, see `describe`.
        options: of the network.
    """
    options |= values(
        config, "h", "reach", "kernel_size", "boundary", "zero_mean", "decoder", "steps_per_block", "remat"
    )
    options["head"] = "pixels" if config.task == "pixels" else "class"
    options["fixed_scale"] = config.norm_budget is not None
    net = nn.network(config.architecture, config.width, len(about["classes"]), dtype=jnp.dtype(config.dtype), **options)
    optimizer = recipe.transformation(config.epochs or 0, about["train"] // config.batch_size)
    if config.init_from is not None:
        optimizer = fine_tuning.slowed(optimizer, config)
    project = projection_of(config, net, about["image_shape"])
    if project is not None:
        optimizer = optax.chain(optimizer, keep_norms(project))

    def create(key: jax.Array) -> TrainState:
        keeps = {"average": recipe.average is not None, "best": config.keeps_best}
        sums = figures(config, len(about["classes"]))
        state = create_state(net, optimizer, key, tuple(about["image_shape"]), figures=sums, **keeps)
        if project is None:
            return state
        return fine_tuning.start(state, {"params": project(state.params), "batch_stats": {}})

    def initial_state() -> TrainState:
        keys = [jax.random.key(config.seed + i) for i in range(config.seeds)]
        return create(keys[0]) if config.seeds == 1 else jax.vmap(create)(jnp.stack(keys))

    return net, optimizer, initial_state


def abstract(make: Callable[[], Any], sharding: Sharding) -> Any:
    """Returns the shapes and dtypes of what make() returns, with this sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make))


def methods_of(ready: Setup) -> dict[str, str]:
    """Returns the methods that a run has recorded; for a new run on a CPU those that `tuning.chosen` chooses."""
    if (ready.config.directory() / "config.json").exists():
        return dict(configuration(ready.config.directory()).get("methods", {}))
    points: set[Point] = set()
    with decided_by(points.add):
        variable_shapes(ready.net, ready.dataset.image_shape)
    return tuning.chosen(points) if ready.mesh.devices.flat[0].platform == "cpu" else {}


def describe(dataset: data.Dataset) -> dict[str, Any]:
    """Returns what must be the same for a run to resume: classes, image shape, counts, and every pixel and label."""
    about = {
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "digest": dataset.digest,
    }
    if dataset.validation is not None:
        about["validation"] = len(dataset.validation)
    if dataset.scale is not None:
        about["scale"] = [list(numbers) for numbers in dataset.scale]
    if (dtype := dataset.train.images.dtype) != np.uint8:
        about["dtype"] = dtype.name
    if dataset.moments is not None:
        about["moments"] = [list(numbers) for numbers in dataset.moments]
    if dataset.masked:
        about["masked"] = True
    if dataset.name == "arrays":  # whose file states them
        about["keeps"] = sorted(dataset.keeps)
    return about


def settings() -> dict[str, Any]:
    """Returns JAX's settings that a result depends on."""
    names = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision")
    return {name: getattr(jax.config, name) for name in names}


def differing_fields(ready: Setup) -> list[str]:
    """Returns the names of what differs between the processes: code, configuration, recipe, data, settings."""
    packages = (Path(__file__).parents[1], Path(data.__file__).parents[1])
    code = b"".join(path.read_bytes() for package in packages for path in sorted(package.rglob("*.py")))
    parts = {"ingredients": dataclasses.asdict(ready.recipe), "data": describe(ready.dataset) | ready.extra}
    versions = processes.differing({"code": hashlib.sha256(code).hexdigest(), "jax": jax.__version__})
    return versions or processes.differing({**shared(ready.config), **flat(parts), **settings()})


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
    config, *_ = read(workdir)
    processes.devices()  # raises where there are none
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
    config, recipe, _ = read(workdir)
    config = dataclasses.replace(config, class_weights=None)  # which only training needs, and the file may be gone
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    ready = prepare(config, recipe, configuration(workdir)["data"])
    ready.methods.update(methods_of(ready))
    return ready, newest(workdir, ready.abstract_state(), ready.steps, finished=to_the_end).state


def check_data(workdir: Path, dataset: data.Dataset, expected: dict[str, Any]) -> None:
    """Raises ValueError unless the data set has the classes, the image shape, and what else is expected of the run."""
    got = {"dtype": "uint8", "masked": False, **describe(dataset)}
    for field in ("classes", "image_shape", "dtype", "masked"):
        if got[field] != expected.get(field, got[field]):
            problem = f"the run in {workdir} was trained on {field} {expected[field]}, the data has {got[field]}"
            raise ValueError(f"{problem}; name its own data with --data-dir")
