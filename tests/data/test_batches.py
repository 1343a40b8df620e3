"""Tests the examples of a step: each comes at most once per epoch, and they depend only on seed and step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcost.data import batch_indices, epoch_order
from lowcost.data.batches import random_rows


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 300))
def test_an_epoch_is_a_permutation(seed, epoch, examples):
    np.testing.assert_array_equal(np.sort(epoch_order(seed, epoch, examples)), np.arange(examples))


@given(st.integers(0, 100), st.integers(0, 5), st.integers(1, 60), st.data())
def test_the_batches_of_an_epoch_are_its_order(seed, epoch, examples, data):
    """The order is cut into batches, and an incomplete last batch is dropped."""
    batch_size = data.draw(st.integers(1, examples))
    steps = examples // batch_size
    batches = [batch_indices(seed, epoch * steps + k, examples, batch_size) for k in range(steps)]
    np.testing.assert_array_equal(np.concatenate(batches), epoch_order(seed, epoch, examples)[: steps * batch_size])


@given(st.integers(1, 300), st.integers(1, 300))
def test_random_rows_are_some_rows_in_order(examples, largest):
    rows = random_rows(examples, largest)
    assert len(rows) == min(examples, largest)
    assert (np.diff(rows) > 0).all()
    assert set(rows) <= set(range(examples))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_random_rows_take_from_all_classes_that_take_turns(classes):
    counts = np.bincount(random_rows(1000, 500) % classes, minlength=classes)
    np.testing.assert_allclose(counts, 500 / classes, rtol=0.3)


def test_epochs_and_seeds_differ():
    orders = {epoch_order(seed, epoch, 50).tobytes() for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_several_seeds_are_each_alone():
    for step in (0, 3, 4):
        alone = [batch_indices(seed, step, 20, 5) for seed in (7, 8)]
        np.testing.assert_array_equal(batch_indices((7, 8), step, 20, 5), alone)


def test_each_place_is_equally_likely():
    """Tests the position of example 0 over 4000 epochs of ten examples by χ² with 9 degrees of freedom."""
    counts = np.bincount([np.argmin(epoch_order(0, epoch, 10)) for epoch in range(4000)], minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 33.7  # the 1e-4 quantile


def test_the_order_sorts_philox():
    """The order sorts the raw numbers of Philox (Salmon et al., 2011), whose output NumPy promises to keep."""
    raw = np.random.Philox(key=3 + (5 << 64)).random_raw(20)
    np.testing.assert_array_equal(raw[epoch_order(3, 5, 20)], np.sort(raw))


def test_a_caller_cannot_change_the_order():
    for seed in 0, (0, 1):
        with pytest.raises(ValueError, match="read-only"):
            batch_indices(seed, 0, 10, 5)[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 10, 11), "batch_size must be 1 to 10, .* got 11"),
        ((0, 0, 10, 0), "batch_size must be 1 to 10, .* got 0"),
        ((0, -1, 10, 5), "step must be at least 0, got -1"),
        ((-1, 0, 10, 5), "seed=-1"),
        ((2**64, 0, 10, 5), "seed=18446744073709551616"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments)
