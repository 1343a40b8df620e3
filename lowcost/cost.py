"""Counts weights and multiply-adds of an operator or a step, applied to one image (Table 1).

The products with weights and the transforms are counted. Activations, normalisations, pooling and y + h f(y) are not,
nor are the symbols, which a whole batch shares. Two real operations make one multiply-add; a multiplication alone
counts as one. The FFT takes the usual 5 n log₂ n real operations on n complex points and half of that on real ones,
which is (5/4) n log₂ n multiply-adds per transform. A DFT by matrix product takes n · n_i along axis i. Where a CPU
applies a fully coupled stencil by Winograd's filtering, it needs fewer than are counted.

The cost of a whole network: `lowcost.nn.network_cost`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lowcost.arguments import check_choice
from lowcost.methods import METHODS, SPECTRAL

Method = Literal["direct", "fft", "matmul"]


class Cost(NamedTuple):
    """The cost of an operator, a step or a network; `total` adds several.

    Attributes:
        weights: real numbers to learn and to store.
        multiply_adds: multiply-adds of one application to one image.
    """

    weights: int
    multiply_adds: int


def total(costs: Sequence[Cost]) -> Cost:
    """Σ of the costs, entry by entry: a row of Table 1 from its parts."""
    return Cost(sum(cost.weights for cost in costs), sum(cost.multiply_adds for cost in costs))


def fully_coupled(
    grid: Sequence[int], window: Sequence[int], c_in: int, c_out: int, *, method: Method = "direct"
) -> Cost:
    """K, Eq. (4): m²·c_in·c_out weights; n·m²·c_in·c_out multiply-adds (n pixels, m² points of the window).

    Args:
        grid: points per axis; n = Π grid.
        window: points of the stencil per axis, no more than the grid's.
        c_in: channels in.
        c_out: channels out.
        method: "direct", or "fft" or "matmul": c_in + c_out transforms and one matrix product per frequency.

    Returns:
        Weights and multiply-adds of one application to one image.

    Raises:
        ValueError: a size below one, a window that does not fit the grid, unknown method.
    """
    return _operator(grid, window, (c_in, c_out), method, grid, (c_in + c_out, c_in * c_out))


def depthwise(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "direct") -> Cost:
    """K_dw, Eq. (5): m²c weights; n·m²·c multiply-adds directly, O(n log n · c) by FFT whatever m is.

    Args, Returns, Raises: as in `fully_coupled`.
    """
    return _operator(grid, window, [channels], method, grid, (2 * channels, channels))


def pointwise(grid: Sequence[int], c_in: int, c_out: int) -> Cost:
    """M, Eq. (6): c_in·c_out weights; n·c_in·c_out multiply-adds.

    Args, Returns, Raises: as in `fully_coupled`.
    """
    return _operator(grid, (1,) * len(grid), (c_in, c_out), "direct", grid)


def linear_mix(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "direct") -> Cost:
    """K_lm = K_dw + M, Eq. (7): m²c + c² weights, the diagonal of M included, as in Table 2; n(m²c + c²) multiply-adds.

    Args, Returns, Raises: as in `fully_coupled`; the method is that of K_dw.
    """
    return total([depthwise(grid, window, channels, method=method), pointwise(grid, channels, channels)])


def circulant(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "fft") -> Cost:
    """K_circ, Eq. (12): m²c weights; O(nc log nc) multiply-adds by F₃, n·m²·c² written out directly.

    Args, Returns, Raises: as in `fully_coupled`.
    """
    return _operator(grid, window, [channels], method, (*grid, channels), uses=channels)


def depthwise_diffusion(
    grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "direct"
) -> Cost:
    """-K_dwᵀK_dw, Eq. (8): m²c weights; 2n·m²·c multiply-adds by K and Kᵀ, or a single filter |λ|².

    Args, Returns, Raises: as in `fully_coupled`.
    """
    return _operator(grid, window, [channels], method, grid, (2 * channels, channels), uses=2, real=True)


def circulant_diffusion(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "fft") -> Cost:
    """-K_circᵀK_circ, Eqs. (8), (12): m²c weights; O(nc log nc) multiply-adds, 2n·m²·c² written out directly.

    Args, Returns, Raises: as in `fully_coupled`.
    """
    return _operator(grid, window, [channels], method, (*grid, channels), uses=2 * channels, real=True)


def explicit_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "direct") -> Cost:
    """y + h(-KᵀK y + σ(N(M y))), Eq. (9): m²c + c² weights; n(2m²c + c²) multiply-adds directly: K, Kᵀ and M.

    Args, Returns, Raises: as in `fully_coupled`; the method is that of KᵀK.
    """
    return total([depthwise_diffusion(grid, window, channels, method=method), pointwise(grid, channels, channels)])


def implicit_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "fft") -> Cost:
    """(I + h KᵀK)⁻¹(y + h σ(N(M y))), Eq. (11): m²c + c² weights; O(n(log n · c + c²)) multiply-adds.

    Args, Returns, Raises: as in `fully_coupled`; an inverse has no direct method.
    """
    check_choice("method", method, SPECTRAL)
    return explicit_rd(grid, window, channels, method=method)  # the same filter with 1 / (1 + h|λ|²) for |λ|²


def circulant_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "fft") -> Cost:
    """Eq. (9) with K_circ for K_dw: m²c + c² weights; O(nc log nc + nc²) multiply-adds.

    The last row of Table 1 gives the order of the diffusion alone. It counts the c² weights of the reaction's M, whose
    n·c² multiply-adds are added here.

    Args, Returns, Raises: as in `explicit_rd`.
    """
    return total([circulant_diffusion(grid, window, channels, method=method), pointwise(grid, channels, channels)])


def implicit_circulant_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: Method = "fft") -> Cost:
    """(I + h KᵀK)⁻¹(y + h σ(N(M y))) with K = K_circ: the cost of `circulant_rd`, with another filter.

    Args, Returns, Raises: as in `implicit_rd`.
    """
    check_choice("method", method, SPECTRAL)
    return circulant_rd(grid, window, channels, method=method)


def _operator(grid, window, channels, method, axes, filters=(2, 1), *, uses=1, real=False):
    """The cost of an operator with m²·Π channels weights.

    Directly, each pixel uses each weight `uses` times. Otherwise it is F⁻¹(λ ⊙ F y) over the axes; `filters` are the
    numbers of transforms, inverse ones included, and of products with λ.
    """
    if len(window) != len(grid) or any(m > n for m, n in zip(window, grid, strict=True)):
        raise ValueError(f"window must fit the grid {list(grid)} axis by axis, got {list(window)}; use a larger grid")
    if min(*grid, *window, *channels) < 1:
        got = f"{list(grid)}, {list(window)} and {list(channels)}"
        raise ValueError(f"grid, window and channels must be at least 1, got {got}")
    check_choice("method", method, METHODS)
    weights = math.prod((*window, *channels))
    if method == "direct":
        return Cost(weights, math.prod(grid) * weights * uses)
    n = math.prod(axes)
    if method == "fft":  # half of a real signal's spectrum is enough: n / 2 products with a complex number
        transform, product = 5 / 4 * n * math.log2(n), (1 if real else 2) * n
    else:
        transform, product = n * sum(axes), n * 2 ** (len(axes) - real)  # λ has 2ᵈ parts, a real one half of them
    return Cost(weights, round(filters[0] * transform + filters[1] * product))
