"""Holds what training and evaluation of a run share: its data, its network and its compiled programs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from experiments.common import fine_tuning
from experiments.common.config import TrainConfig
from experiments.common.recipes import Recipe
from lowcost import data, nn
from lowcost.train import loop
from lowcost.train.feed import Feed, feed, fits_on_devices
from lowcost.train.mesh import place, replicated, shard_batch
from lowcost.train.metrics_log import Metrics
from lowcost.train.state import TrainState


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

    def batches(self) -> tuple[Feed, int]:
        """Returns the batches of the training images, and the largest number of steps of one program."""
        train, steps_max = self.dataset.train, loop.dispatch_max(self.mesh)
        resident = fits_on_devices(train.images, self.mesh)
        arrays = train.images, train.labels
        return feed(*arrays, self.indices, self.mesh, steps_max=steps_max, resident=resident), steps_max

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
            epoch = np.full(score.shape, loop.steps_done(state) // self.steps_per_epoch, np.int32)
            state = self.keep_best(state, *(place(x, replicated(self.mesh)) for x in (score, epoch)))
        return metrics, state

    def of_each_seed(self, variables: Any) -> list[Any]:
        """Returns the variables of each network of a run."""
        if self.config.seeds == 1:
            return [variables]
        return [jax.tree.map(lambda x, i=i: x[i], variables) for i in range(self.config.seeds)]

    def outputs(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Returns the outputs of each network for images of the data set, float32 [seeds, N, K], or of each point."""
        seeds, size = self.config.seeds, self.config.batch_size
        parts = []
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size).clip(max=len(images) - 1)  # one program serves the last batch too
            outputs = np.asarray(self.apply(variables, *shard_batch(self.mesh, images[rows])), np.float32)
            parts.append(outputs if seeds > 1 else outputs[None])
        return np.concatenate(parts, axis=1)[:, : len(images)]


def abstract(make: Callable[[], Any], sharding: Sharding) -> Any:
    """Returns the shapes and dtypes of what make() returns, with this sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make))
