"""Steps whose loss or gradient is not finite change nothing, are counted, and end the run if they continue."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal
from rich.console import Console

from lowcost.nn import network
from lowcost.train.checkpoint import Checkpoints
from lowcost.train.interruption import Interruption
from lowcost.train.loop import fit
from lowcost.train.metrics_log import MetricsLog
from lowcost.train.state import create_state
from lowcost.train.step import PATIENCE, make_train_step, mean_metrics, repeat

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 8, 12, 8, 1), np.float32)
LABELS = RNG.integers(0, 3, (4, 8)).astype(np.int32)
ROWS = np.arange(8)
OPTIMIZER = optax.adam(1e-2)
KEY = jax.random.key(0)


class Cusp(nn.Module):
    """Has a finite loss whose gradient is not finite: ∂√|p| at p = 0."""

    @nn.compact
    def __call__(self, images, *, train):
        p = self.param("p", nn.initializers.zeros_init(), (1, 3))
        return images.mean((1, 2)) + jnp.sqrt(jnp.abs(p))


def unchanged(images, draw):
    return images


def program(net, steps_per_epoch=100):
    """Returns (state, images, labels) → state, and an initial state with a moving average."""
    step = jax.jit(make_train_step(net, OPTIMIZER, unchanged, steps_per_epoch, average=0.9))
    state = create_state(net, OPTIMIZER, KEY, (12, 8, 1), average=True)
    return lambda state, images, labels: step(state, images, labels, ROWS), state


@pytest.fixture(scope="module")
def small():
    return program(network("implicit_rd", (2, 4), 3, steps_per_block=1))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_key_of_any_generator(impl):
    """The step draws from the very key that the state was made with, for one seed and for several."""
    key = jax.random.key(5, impl=impl)

    def augment(images, draw):
        return images + jax.random.key_data(draw.run).sum() + jax.random.uniform(draw.step, images.shape)

    step = jax.jit(make_train_step(Cusp(), OPTIMIZER, augment, 100))
    create = partial(create_state, Cusp(), OPTIMIZER, image_shape=(12, 8, 3))
    state, images = create(key), np.ones((8, 12, 8, 3), np.float32)
    assert step(state, images, LABELS[0], ROWS).step == 1
    assert state.key_impl == impl
    states = jax.vmap(create)(jax.random.split(key, 2))
    several = jax.vmap(step, (0, None, None, None))(states, images, LABELS[0], ROWS)
    assert several.step.tolist() == [1, 1]
    assert several.key_impl == impl


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("skipped", [(0,), (1, 2), (3,)], ids=str)
def test_a_bad_batch_is_as_if_it_never_came(small, bad, skipped):
    """Weights, statistics, average, optimiser and metrics are equal bit for bit; only the step increases."""
    step, state = small
    without = state
    for i, (images, labels) in enumerate(zip(IMAGES, LABELS, strict=True)):
        if i in skipped:
            damaged = images.copy()
            damaged[5, 3, 2, 0] = bad
            state = step(state, damaged, labels)
            without = without.replace(step=without.step + 1)
            assert state.skipped_in_a_row == 1 + skipped.index(i)
        else:
            state, without = step(state, images, labels), step(without, images, labels)
            assert state.skipped_in_a_row == 0
    assert (int(state.step), int(state.skipped)) == (4, len(skipped))
    assert state.metrics["count"] == 8 * (4 - len(skipped))
    assert_trees_all_equal(state.replace(skipped=0, skipped_in_a_row=0), without.replace(skipped=0, skipped_in_a_row=0))


def test_a_gradient_that_is_not_finite_is_enough():
    step, state = program(Cusp())
    after = step(state, IMAGES[0], LABELS[0])
    assert after.skipped == 1
    assert_trees_all_equal(after.params, state.params)


def test_a_new_epoch_starts_its_metrics_also_with_a_bad_batch():
    step, state = program(Cusp(), steps_per_epoch=2)
    state = state.replace(step=jnp.int32(2), metrics={name: jnp.float32(7) for name in state.metrics})
    state = step(state, IMAGES[0], LABELS[0])
    assert state.metrics == dict.fromkeys(("count", "loss", "correct"), 0)
    assert all(np.isnan(value) for value in mean_metrics(state.metrics).values())


@pytest.mark.parametrize("steps_max", [1, 8])
def test_when_it_does_not_end_the_run_stops(tmp_path, steps_max):
    """The state does not change after PATIENCE steps; the run names this step and saves no checkpoint."""
    train_step = make_train_step(Cusp(), OPTIMIZER, unchanged, 100)
    steps, state = jax.jit(repeat(train_step)), create_state(Cusp(), OPTIMIZER, KEY, (12, 8, 1))
    batches = [np.stack([x] * 20) for x in (IMAGES[0], LABELS[0], ROWS)]
    still = steps(state, PATIENCE + 3, *batches)
    assert still.step == still.skipped == PATIENCE
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(
        FloatingPointError, match=f"step {PATIENCE}: .* got other values in the last {PATIENCE} steps; check"
    ):
        fit(
            state,
            steps,
            lambda step, n, following: batches,
            lambda state: None,
            steps_per_epoch=100,
            epochs=1,
            steps_max=steps_max,
            log=MetricsLog([], tmp_path / "metrics.jsonl"),
            checkpoints=checkpoints,
            interruption=Interruption(),
            console=Console(quiet=True),
        )
    assert checkpoints.restore_newest(state) is None
    checkpoints.close()
