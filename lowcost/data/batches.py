"""Which examples make up the batch of a step: a pure function, so that a run resumes by setting its step."""

import functools

import numpy as np
from numpy.typing import NDArray


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """A permutation of 0 … examples − 1, drawn anew for each epoch.

    It sorts the raw output of the Philox generator keyed by (seed, epoch). NumPy promises that output for good, which
    it does not for `Generator.permutation`, nor JAX for `jax.random`: the order is the same everywhere.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        epoch: counts from 0.
        examples: how many there are, ≥ 1.

    Returns:
        int64 [examples].

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (0 <= seed < 2**64 and epoch >= 0 and examples >= 1):
        raise ValueError(f"epoch_order: expected 0 ≤ {seed=} < 2⁶⁴, {epoch=} ≥ 0 and {examples=} ≥ 1")
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples), kind="stable")


def batch_indices(seed: int | tuple[int, ...], step: int, examples: int, batch_size: int) -> NDArray[np.int64]:
    """The k-th run of batch_size examples in the epoch's order, with (epoch, k) = divmod(step, examples // batch_size).

    An epoch shows every example at most once; the examples % batch_size that are left over wait for another epoch.

    Args:
        seed: 0 ≤ seed < 2⁶⁴, or several.
        step: counts optimiser steps from 0.
        examples: how many there are.
        batch_size: how many make a batch, 1 ≤ batch_size ≤ examples.

    Returns:
        int64 [batch_size], with several seeds [seeds, batch_size], read-only.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size: expected 1 to {examples}, as many as there are examples, got {batch_size}")
    if step < 0:
        raise ValueError(f"step: expected at least 0, got {step}")
    epoch, k = divmod(step, examples // batch_size)
    return _orders(seed, epoch, examples)[..., k * batch_size : (k + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _orders(seed, epoch, examples):
    if isinstance(seed, tuple):
        orders = np.stack([epoch_order(s, epoch, examples) for s in seed])
    else:
        orders = epoch_order(seed, epoch, examples)
    orders.setflags(write=False)  # a caller's change would reach every later batch
    return orders
