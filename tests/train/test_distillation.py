"""Tests distillation: its loss, its gradient, and train steps with teachers, on one device and on four."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from scipy.special import log_softmax, softmax
from train.test_step import GREY, LABELS, NET, SHAPE

from lowcost.train.distillation import Teacher, distilled, mean_probabilities
from lowcost.train.losses import cross_entropy
from lowcost.train.mesh import over_batch, replicated
from lowcost.train.state import create_state
from lowcost.train.step import make_train_step, repeat

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 3)).astype(np.float32)
TARGETS = softmax(RNG.normal(size=(8, 3)), axis=-1).astype(np.float32)
HARD = functools.partial(cross_entropy, class_weights=(1, 2, 3), smoothing=0.1)
OPTIMIZER = optax.sgd(0.1)


def state(seed):
    return create_state(NET, OPTIMIZER, jax.random.key(seed), SHAPE)


def shifted(images, draw):
    """Augments images depending on the key."""
    return images + jax.random.uniform(draw.step, images.shape)


@functools.cache
def program(share):
    """Returns the jitted steps of a run, with the distilled loss of this share, or the plain loss for None."""
    loss = cross_entropy if share is None else functools.partial(distilled, loss=cross_entropy, share=share)
    return jax.jit(repeat(make_train_step(NET, OPTIMIZER, shifted, 10, loss=loss)))


BATCHES = [np.stack([x] * 2) for x in (GREY, LABELS, np.arange(8, dtype=np.int32))]
TEACHERS = tuple(Teacher(NET, state(seed).variables) for seed in (5, 6))


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_the_loss_is_the_formula(share):
    """Class weights and label smoothing stay those of the loss that is replaced; a share of 0 is that loss."""
    plain, figures = HARD(LOGITS, LABELS), distilled(LOGITS, (LABELS, TARGETS), loss=HARD, share=share)
    expected = (1 - share) * plain["loss"] - share * (TARGETS * log_softmax(LOGITS, axis=-1)).sum(-1)
    np.testing.assert_allclose(figures["loss"], expected, rtol=1e-5)
    assert_trees_all_equal({**figures, "loss": 0}, {**plain, "loss": 0})
    if not share:
        np.testing.assert_array_equal(figures["loss"], plain["loss"])


def test_a_network_that_is_its_own_teacher_has_a_gradient_of_zero():
    """At the logits it is zero for any labels; a share of one half gives half of the plain gradient."""

    def gradient(share):
        loss = functools.partial(distilled, loss=cross_entropy, share=share)
        return jax.grad(lambda x: loss(x, (LABELS, jax.nn.softmax(LOGITS)))["loss"].sum())(jnp.asarray(LOGITS))

    assert np.abs(gradient(0)).max() > 0.1
    np.testing.assert_allclose(gradient(1), 0, atol=1e-6)
    np.testing.assert_allclose(gradient(0.5), gradient(0) / 2, atol=1e-6)


def test_teachers_are_averaged_by_their_probabilities():
    images = RNG.random((8, *SHAPE), np.float32)
    outputs = [NET.apply(teacher.variables, images, train=False) for teacher in TEACHERS]
    expected = (softmax(outputs[0], axis=-1) + softmax(outputs[1], axis=-1)) / 2
    np.testing.assert_allclose(mean_probabilities(TEACHERS, images), expected, rtol=1e-5)


def test_a_step_with_its_own_network_as_the_only_target_changes_nothing():
    """The teacher sees the augmented images; for other images its probabilities would differ."""
    before = state(0)
    own = (Teacher(NET, before.variables),)
    after = program(1.0)(before, 1, *BATCHES, teachers=own)
    assert_trees_all_close(after.params, before.params, atol=1e-6)
    other = program(1.0)(before, 1, *BATCHES, teachers=TEACHERS)
    assert np.abs(other.params["classifier"]["kernel"] - before.params["classifier"]["kernel"]).max() > 1e-3


def test_a_share_of_zero_is_the_step_without_teachers():
    with_teachers = program(0.0)(state(0), 2, *BATCHES, teachers=TEACHERS)
    assert_trees_all_close(with_teachers, program(None)(state(0), 2, *BATCHES), rtol=1e-6, atol=1e-7)


def test_teachers_are_arguments_of_one_program():
    """Other weights of the same networks need no compilation, and give other students."""
    steps = jax.jit(program(0.5).__wrapped__)
    students = [steps(state(0), 1, *BATCHES, teachers=some) for some in (TEACHERS, TEACHERS[::-1], TEACHERS[:1] * 2)]
    assert steps._cache_size() == 1
    assert_trees_all_close(students[0], students[1], rtol=1e-5, atol=1e-6)
    kernels = [student.params["classifier"]["kernel"] for student in students]
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3


def test_four_devices_do_what_one_does():
    """The images are sharded, and the teachers are on every device."""
    alone = program(0.5)(state(0), 2, *BATCHES, teachers=TEACHERS)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        batches = [jax.device_put(x, over_batch(mesh, 1)) for x in BATCHES]
        first, teachers = jax.device_put((state(0), TEACHERS), replicated(mesh))
        sharded = program(0.5)(first, 2, *batches, teachers=teachers)
    assert_trees_all_close(jax.device_get(sharded), jax.device_get(alone), rtol=1e-4, atol=1e-6)
