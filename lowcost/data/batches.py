"""Selects the examples of a step's batch by a pure function, so that a run resumes by setting its step."""

import functools

import numpy as np
from numpy.typing import NDArray


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """Returns a random permutation of 0 … examples − 1, another one in each epoch.

    It sorts the raw output of the Philox generator with key (seed, epoch). NumPy guarantees that output for all
    versions, unlike `Generator.permutation` and `jax.random`, so that the order is the same everywhere.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        epoch: counts from 0.
        examples: the number of examples, ≥ 1.

    Returns:
        int64 [examples].

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (0 <= seed < 2**64 and epoch >= 0 and examples >= 1):
        raise ValueError(f"seed must be in 0 … 2⁶⁴ − 1, epoch ≥ 0 and examples ≥ 1, got {seed=}, {epoch=}, {examples=}")
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples), kind="stable")


def random_rows(examples: int, largest: int) -> NDArray[np.int64]:
    """Returns at most `largest` of the numbers 0 … examples − 1 in ascending order, at random with a fixed seed.

    Unlike every k-th example, they represent all classes if the classes take turns.
    """
    return np.sort(epoch_order(0, 0, examples)[:largest])


def batch_indices(seed: int | tuple[int, ...], step: int, examples: int, batch_size: int) -> NDArray[np.int64]:
    """order[k·batch_size : (k + 1)·batch_size], with (epoch, k) = divmod(step, examples // batch_size).

    Here order is `epoch_order` of the epoch. An epoch uses each example at most once, and drops the last
    examples % batch_size of its order.

    Args:
        seed: 0 ≤ seed < 2⁶⁴, or several.
        step: counts optimiser steps from 0.
        examples: the number of examples.
        batch_size: 1 ≤ batch_size ≤ examples.

    Returns:
        int64 [batch_size], with several seeds [seeds, batch_size], read-only.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size must be 1 to {examples}, the number of examples, got {batch_size}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    epoch, k = divmod(step, examples // batch_size)
    return _orders(seed, epoch, examples)[..., k * batch_size : (k + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _orders(seed: int | tuple[int, ...], epoch: int, examples: int) -> NDArray[np.int64]:
    if isinstance(seed, tuple):
        orders = np.stack([epoch_order(s, epoch, examples) for s in seed])
    else:
        orders = epoch_order(seed, epoch, examples)
    orders.setflags(write=False)  # since the cache returns it again
    return orders
