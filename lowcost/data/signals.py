"""Resamples signals of different lengths to one length, or pads them and marks the padding by a mask."""

import numpy as np
from numpy.typing import NDArray


def resample(signals: NDArray[np.float32], points: int, lengths: NDArray | None = None) -> NDArray[np.float32]:
    """signal(p·(n − 1)/(points − 1)) for p = 0 … points − 1, linear between the n valid points of each signal.

    The first and, unless points = 1, the last point stay, and points = n is the identity. There is no low-pass filter
    before a reduction.

    Args:
        signals: [N, P, C].
        points: the new number of points.
        lengths: n of each signal, [N]; None: P.

    Returns:
        [N, points, C].
    """
    last = np.full(len(signals), signals.shape[1] - 1) if lengths is None else np.asarray(lengths, np.int64) - 1
    # Not np.linspace, which computes all signals in another order if one of them has a single point.
    places = np.arange(points) * (last / max(points - 1, 1))[:, None]
    places[:, 1:][:, -1:] = last[:, None]
    places = places[..., None]
    left = places.astype(np.int64)
    start, end = (np.take_along_axis(signals, p, 1) for p in (left, np.minimum(left + 1, last[:, None, None])))
    return start + (places - left).astype(np.float32) * (end - start)


def with_mask(signals: NDArray[np.float32], lengths: NDArray) -> NDArray[np.float32]:
    """Returns signals [N, P, C] with a further channel, 1 at the first n points of each and 0 after; 0 after in all."""
    valid = (np.arange(signals.shape[1]) < np.asarray(lengths)[:, None])[..., None]
    return np.concatenate([np.where(valid, signals, np.float32(0)), valid.astype(np.float32)], axis=-1)
