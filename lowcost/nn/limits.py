"""Computes operator norms of weights, and limits them; see `lowcost.nn.norm_budget`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowcost.arguments import promote
from lowcost.spectral import circulant_symbol, coupled_symbol, symbol

Limits = dict[str, Any]
"""Name of a weight → its largest operator norm, in the nested form of the weights; weights without one are free."""

MARGIN = 1e-5
"""Relative distance that norms keep from their limits, for the rounding of float32."""


def change_limit(bound: float, h: float) -> float:
    """(bound - 1) / h: the largest Lipschitz constant of f with which that of y + h f(y) is at most `bound`."""
    return (bound - 1) / h if h else math.inf


def within(weights: Mapping[str, Any], limits: Mapping[str, Any], grid: Sequence[int]) -> dict[str, Any]:
    """θ · min(1, limit / ‖K(θ)‖): scales down the weights of a layer whose operator norms exceed their limits.

    Args:
        weights: by name, such as "matrix1", "kernel", "stencil", "shared_stencil"; may be nested.
        limits: of all or some of them. A depth-wise stencil has one norm, and one factor, per channel.
        grid: points per axis of the layer's input; the norm of a stencil is the maximum of its symbol on it.

    Returns:
        The weights. Those within their limits are unchanged, bit for bit, and so are those that it returned before.
    """
    return {name: _within(name, x, limits[name], grid) if name in limits else x for name, x in weights.items()}


def _within(name, x, limit, grid):
    if isinstance(limit, Mapping):
        return within(x, limit, grid)
    norms = jnp.maximum(_operator_norms(name, x, grid), jnp.finfo(x.dtype).tiny)
    return x * jnp.where(norms * (1 + MARGIN) <= limit, 1, limit / (norms * (1 + 2 * MARGIN)))


def _operator_norms(name, x, grid):
    """Returns ‖K(θ)‖, or [1, …, 1, C] with the norm of each channel of a depth-wise stencil."""
    if name.startswith(("matrix", "kernel")):
        return spectral_norms(x)
    if name == "shared_stencil":
        return jnp.abs(circulant_symbol(x / math.sqrt(x.shape[-1]), grid)).max()
    if x.ndim == len(grid) + 1:
        return jnp.abs(symbol(x, grid)).max(range(len(grid)), keepdims=True)
    λ = coupled_symbol(x, grid)
    return spectral_norms(λ[..., : grid[-1] // 2 + 1, :, :]).max()  # λ₋ₖ is the conjugate of λₖ


def spectral_norms(matrices: jax.Array) -> jax.Array:
    """‖A‖₂ ≤ ‖(AᴴA)^(2ᵏ)‖_F^(1/2ᵏ⁺¹), k = 8: returns these bounds of matrices [..., m, n], shape [...].

    To rounding, a bound exceeds the norm by at most a factor of min(m, n)^(1/1024), which is 1.005 for 128. It takes
    products of matrices only, which all devices compute fast (Gram iteration, Delattre et al. 2023, arXiv:2305.16173).
    """
    matrices = promote(matrices)
    tiny = jnp.finfo(matrices.dtype).tiny
    scale = jnp.maximum(jnp.abs(matrices).max((-2, -1), keepdims=True), tiny)  # so that no square overflows
    a = matrices / scale.astype(matrices.dtype)
    a = a if a.shape[-2] >= a.shape[-1] else a.swapaxes(-1, -2)
    power, log = _product(a.conj().swapaxes(-1, -2), a), jnp.log(scale[..., 0, 0])
    for i in range(9):  # power is (AᴴA)^(2^i) up to a factor
        power = _product(power, power) if i else power
        size = jnp.maximum(jnp.sqrt((jnp.abs(power) ** 2).sum((-2, -1), keepdims=True)), tiny)
        power = power / size.astype(power.dtype)
        log += jnp.log(size[..., 0, 0]) / 2 ** (i + 1)
    return jnp.exp(log)


def _product(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
