"""Tests what a train step takes: images of every dtype with a known range, and optimisers that need the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal

from lowcost.scaling import to_unit_range
from lowcost.train.losses import cross_entropy
from lowcost.train.state import create_state, keep_best
from lowcost.train.step import make_eval_step, make_train_step, repeat


class Linear(nn.Module):
    """Computes logits that are linear in the pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(3, name="classifier")(images.reshape(len(images), -1))


NET = Linear()
SHAPE = (8, 8, 1)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, *SHAPE), np.uint8)
LABELS = RNG.integers(0, 3, 8).astype(np.int32)


def trained(images, optimizer, steps=1):
    """Returns the state after several steps on one batch, all in one dispatch."""
    step = jax.jit(repeat(make_train_step(NET, optimizer, lambda images, draw: images, 100)))
    batch = [np.stack([x] * max(1, steps)) for x in (images, LABELS, np.arange(8, dtype=np.int32))]
    state = jax.jit(create_state, static_argnums=(0, 1, 3))(NET, optimizer, jax.random.key(0), SHAPE)
    return step(state, steps, *batch)


def test_a_state_can_be_donated():
    """Its parts share no array with each other or with the key, and its types stay, so that a step compiles once."""
    key, optimizer = jax.random.key(0), optax.contrib.prodigy()  # whose state holds the first weights
    state = create_state(NET, optimizer, key, SHAPE, average=True, best=True)
    step = make_train_step(NET, optimizer, lambda images, draw: images, 100, average=0.9)
    step = jax.jit(step, donate_argnums=0)
    for epoch in (1, 2):
        state = step(state, GREY, LABELS, np.arange(8, dtype=np.int32))
        state = keep_best(state, np.float32(epoch), np.int32(epoch))
    assert int(state.step) == 2
    assert step._cache_size() == 1
    jax.random.split(key)


def test_labels_may_be_several_arrays():
    """A loss of one's own can take e.g. classes and the weights of images."""

    def weighted(logits, labels):
        return {**cross_entropy(logits, labels[0]), "weight": labels[1]}

    step = repeat(make_train_step(NET, optax.sgd(0.1), lambda images, draw: images, 100, loss=weighted))
    state = create_state(NET, optax.sgd(0.1), jax.random.key(0), SHAPE, figures=("loss", "correct", "weight"))
    batch = GREY, (LABELS, np.eye(8, dtype=np.float32)[0]), np.arange(8)
    done = jax.jit(step)(state, 1, *jax.tree.map(lambda x: x[None], batch))
    alone = jax.jit(step)(state, 1, GREY[None, :1], (LABELS[None, :1], np.ones((1, 1), np.float32)), np.arange(1)[None])
    np.testing.assert_allclose(done.params["classifier"]["kernel"], alone.params["classifier"]["kernel"], atol=1e-6)


@pytest.mark.parametrize(("ours", "average"), [(True, None), (False, 0.9)])
def test_a_state_and_its_step_agree_on_the_average(ours, average):
    """A step without one would leave the average of the state at its first weights, which are deployed."""
    step = make_train_step(NET, optax.sgd(0.1), lambda images, draw: images, 100, average=average)
    state = create_state(NET, optax.sgd(0.1), jax.random.key(0), SHAPE, average=ours)
    with pytest.raises(ValueError, match=f"the state must have .*average.* as the step, got .*average={not ours}"):
        jax.eval_shape(step, state, GREY, LABELS, np.arange(8, dtype=np.int32))


def test_floats_are_taken_as_they_are():
    """Grey levels as uint8 and the same levels as float32 in [0, 1] train and evaluate alike, bit for bit."""
    optimizer = optax.sgd(0.1)
    floats = np.asarray(jax.jit(to_unit_range)(GREY))
    states = [trained(images, optimizer, steps=2) for images in (GREY, floats)]
    assert_trees_all_equal(*states)
    evaluate = jax.jit(make_eval_step(NET))
    sums = [evaluate(states[0].variables, images, LABELS, jnp.ones(8)) for images in (GREY, floats)]
    assert_trees_all_equal(*sums)
    assert trained(10 * floats - 5, optimizer).skipped == 0  # signals outside of [0, 1] are no error


@pytest.mark.parametrize("by", [np.asarray, jax.jit(lambda x: x)], ids=["numpy", "jax"])
def test_integers_are_scaled_by_the_range_of_their_type(by):
    """uint8 keeps the bits of x / 255; other types of 8 and 16 bits give the same numbers, shifted or finer."""
    levels = np.arange(256, dtype=np.uint8)
    unit = to_unit_range(by(levels))
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, by(levels).astype(np.float32) / 255)
    np.testing.assert_array_equal(to_unit_range(by((levels.astype(int) - 128).astype(np.int8))), unit)
    fine = levels.astype(np.uint16) * 257
    np.testing.assert_allclose(to_unit_range(by(fine)), unit, rtol=2e-7)
    np.testing.assert_array_equal(
        to_unit_range(by((fine.astype(int) - 2**15).astype(np.int16))), to_unit_range(by(fine))
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_floats_are_float32_at_least(dtype):
    x = jnp.asarray([-3.0, 0.5, 7.0], dtype)
    np.testing.assert_array_equal(to_unit_range(x), np.float32([-3, 0.5, 7]))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint32, np.complex64])
def test_types_without_a_range_of_grey_levels_are_refused(dtype):
    """Without the error, an int32 array that holds 0 ... 255 would silently become a constant."""
    with pytest.raises(TypeError, match=f"images must be .*, got {np.dtype(dtype).name}; cast grey levels to"):
        trained(GREY.astype(dtype), optax.sgd(0.1))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, atol=1e9)),
        optax.polyak_sgd(0.1),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
        optax.adam(0.1),
    ],
    ids=["reduce_on_plateau", "polyak_sgd", "linesearch", "adam"],
)
def test_an_optimiser_is_given_the_loss(optimizer):
    """It also gets gradient and function, as optax passes them; an optimiser that takes none of them works too."""
    state = trained(GREY, optimizer, steps=4)
    assert (int(state.step), int(state.skipped)) == (4, 0)


def test_the_value_is_the_mean_loss_of_the_batch():
    """An optimiser that moves every weight by the value moves it by the mean loss."""

    def update(grads, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: jnp.full_like(g, value), grads), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    before, after = trained(GREY, optimizer, steps=0), trained(GREY, optimizer)
    moved = after.params["classifier"]["bias"] - before.params["classifier"]["bias"]
    np.testing.assert_allclose(moved, after.metrics["loss"] / 8, rtol=1e-6)


def test_an_image_of_weight_zero_counts_for_nothing():
    """Loss, correct answers and count are those of the images with weight one, whatever the label of the other is."""
    state, evaluate = trained(GREY, optax.sgd(0.1)), jax.jit(make_eval_step(NET))
    answers = np.asarray(NET.apply(state.variables, to_unit_range(GREY), train=False)).argmax(-1).astype(np.int32)
    for labels in answers, (answers + 1) % 3:
        all_but_one = evaluate(state.variables, GREY, labels, jnp.ones(8).at[7].set(0))
        without = evaluate(state.variables, GREY[:7], labels[:7], jnp.ones(7))
        for name, total in without.items():
            np.testing.assert_allclose(all_but_one[name], total, rtol=1e-6)
