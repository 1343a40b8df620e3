"""From a configuration to everything a run needs: data set, mesh, network, optimiser, state."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.config import TrainConfig, read
from experiments.recipes import RECIPES
from lowcost import data, nn
from lowcost.train.checkpoint import Checkpoints
from lowcost.train.mesh import data_mesh, replicated, use_every_core
from lowcost.train.state import TrainState, create_state


class Setup(NamedTuple):
    """What training and evaluation share.

    Attributes:
        dataset: images and labels.
        mesh: all devices; already set as JAX's mesh.
        net: the network.
        optimizer: of its weights.
        abstract_state: shapes, dtypes and shardings of the state.
        steps_per_epoch: whole batches in the training images.
    """

    dataset: data.Dataset
    mesh: Mesh
    net: nn.Network
    optimizer: optax.GradientTransformation
    abstract_state: TrainState
    steps_per_epoch: int

    def initial_state(self, seed: int) -> TrainState:
        """The state before the first step, on all devices."""
        create = jax.jit(
            lambda key: create_state(self.net, self.optimizer, key, self.dataset.image_shape),
            out_shardings=replicated(self.mesh),
        )
        return create(jax.random.key(seed))


def prepare(config: TrainConfig) -> Setup:
    """Load the data and build the network, checking that they fit; nothing is trained or compiled yet.

    Raises:
        ValueError, OSError: what the user can mend, in one line.
    """
    if min(config.batch_size, config.length()) < 1:
        raise ValueError(f"--batch-size and --epochs must be at least 1, got {config.batch_size} and {config.length()}")
    if config.keep < 1:
        raise ValueError(f"--keep must be at least 1, got {config.keep}")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"--seed must be from 0 to 2⁶³ - 1, got {config.seed}")
    use_every_core(config.batch_size)
    mesh = data_mesh(config.batch_size)
    jax.set_mesh(mesh)
    cache = config.directory().parent / ".lowcost-cache"
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        cache_dir=cache,
        download=config.download,
    )
    steps_per_epoch = len(dataset.train) // config.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"--batch-size {config.batch_size} is larger than the {len(dataset.train)} training images of "
            f"{dataset.name}; use a smaller one"
        )
    net = nn.network(
        config.architecture,
        config.width,
        len(dataset.classes),
        h=config.h,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )
    optimizer = RECIPES[config.recipe](steps_per_epoch, config.length())
    shapes = jax.eval_shape(
        lambda key: create_state(net, optimizer, key, dataset.image_shape), jax.random.key(config.seed)
    )
    sharding = replicated(mesh)
    abstract_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    return Setup(dataset, mesh, net, optimizer, abstract_state, steps_per_epoch)


def describe(dataset: data.Dataset) -> dict[str, Any]:
    """What must be the same for a run to go on: the classes, the images' shape, how many there are, and their order."""
    labels = hashlib.sha256(dataset.train.labels.tobytes() + dataset.test.labels.tobytes())
    return {
        "classes": list(dataset.classes),
        "image_shape": list(dataset.image_shape),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "labels": labels.hexdigest()[:16],
    }


def reopen(workdir: Path, data_dir: Path | None) -> tuple[TrainConfig, Setup, TrainState]:
    """The configuration, set-up and newest valid state of a run.

    Args:
        workdir: its work directory.
        data_dir: where its pictures are now, if no longer where they were.

    Raises:
        ValueError, OSError: what the user can mend, in one line.
    """
    config, expected = read(workdir)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    ready = prepare(config)
    got = describe(ready.dataset)
    for field in ("classes", "image_shape"):
        if got[field] != expected[field]:
            raise ValueError(
                f"the run in {workdir} was trained on {field} {expected[field]}, the data has {got[field]}; "
                "name the folder that belongs to it with --data-dir"
            )
    saved = checkpoints(workdir)
    try:
        restored = saved.restore_newest(ready.abstract_state)
    finally:
        saved.close()
    if restored is None:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; train first")
    return config, ready, restored[1]


def checkpoints(workdir: Path, keep: int = TrainConfig.keep) -> Checkpoints:
    """The checkpoints of a work directory, of which the newest `keep` stay."""
    return Checkpoints(workdir / "checkpoints", keep)
