"""Computes the FFT of real signals, and its inverse by one transform on every platform, for up to three axes.

The spectrum of a real signal has the symmetry ŷ(-k) = conj ŷ(k), and so has its product with the symbol of a real
stencil. The derivatives here keep this symmetry, and the inverse relies on it along all axes. JAX's own inverse relies
on it along the last axis only. The FFT of GPUs cannot do that: there JAX transforms axis after axis, and copies the
spectrum before and after each.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import ad, mlir
from jax.lax import FftType

from lowcost.primitive import primitive

MOST_AXES = 3
"""Number of axes that XLA transforms at once."""


def real_fft(y: jax.Array, dims: int) -> jax.Array:
    """ŷ_k = Σ_j y_j exp(-2πi k·j / n) along the last `dims` axes, for k_d = 0, …, n_d // 2 along the last one."""
    if dims > MOST_AXES:
        return jnp.fft.rfftn(y, axes=range(-dims, 0))
    return _forward.bind(y, grid=y.shape[-dims:])


def inverse_real_fft(spectrum: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Inverts `real_fft`: y on this grid, from a spectrum with the symmetry of a real signal."""
    if len(grid) > MOST_AXES:
        return jnp.fft.irfftn(spectrum, grid, range(-len(grid), 0))
    return _inverse.bind(spectrum, grid=grid)


_forward = primitive("real_fft", lambda y, grid: jax.lax.fft(y, FftType.RFFT, grid), ("grid",), leading_axes=True)
_inverse = primitive(
    "inverse_real_fft", lambda z, grid: jax.lax.fft(z, FftType.IRFFT, grid), ("grid",), leading_axes=True
)


def _by_one_transform(_, spectrum, *, grid):
    return [stablehlo.fft(spectrum, stablehlo.FftTypeAttr.get("IRFFT"), mlir.dense_int_array(grid))]


for _platform in ("cuda", "rocm"):
    mlir.register_lowering(_inverse, _by_one_transform, platform=_platform)


def _weights(grid, ndim):
    """Returns for each k of the last axis the number of points that it stands for, k and -k, over those of the grid."""
    n = grid[-1]
    alone = np.isin(np.arange(n // 2 + 1), (0, n / 2))
    return np.expand_dims(np.where(alone, 1, 2) / math.prod(grid), tuple(range(ndim - 1)))


def _forward_transposed(z, _, *, grid):
    return [_inverse.bind(jnp.conj(z) * (1 / _weights(grid, z.ndim)).astype(z.dtype), grid=grid)]


def _inverse_transposed(z, spectrum, *, grid):
    transformed = jnp.conj(_forward.bind(z, grid=grid))
    return [transformed * _weights(grid, z.ndim).astype(spectrum.aval.dtype)]


ad.deflinear2(_forward, _forward_transposed)
ad.deflinear2(_inverse, _inverse_transposed)
