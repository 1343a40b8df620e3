"""Weights and multiply-adds of one image's way through each layer (Table 1) and through a whole network (Table 2).

Counted are the products with weights and the transforms. Not counted: activations, normalisations, pooling, y + h f(y),
and the symbols, which a whole batch shares. Two real operations make a multiply-add; a multiplication alone counts as
one. An FFT is counted in the usual way, 5 n log₂ n real operations on n complex points and half of it on real ones,
that is (5/4) n log₂ n multiply-adds a transform; a DFT by matrix product n · n_i along each axis.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lowcost.arguments import check_choice
from lowcost.methods import METHODS, SPECTRAL

WIDTHS = {"A": (32, 64, 128), "B": (48, 96, 192), "C": (32, 64, 128, 256)}
"""Channels per block of the networks of Section 4."""


def block_channels(width: str | Sequence[int]) -> tuple[int, ...]:
    """c_{i+1} = 2c_i, the channels of each block: those of a width "A", "B" or "C" of Section 4, or the ones given.

    Raises:
        ValueError: an unknown letter, or channels that do not double from block to block.
    """
    if isinstance(width, str):
        check_choice("width", width, tuple(WIDTHS))
        return WIDTHS[width]
    whole = all(isinstance(c, numbers.Integral) for c in width)
    if not whole or not len(width) or width[0] < 1 or any(b != 2 * a for a, b in itertools.pairwise(width)):
        raise ValueError(
            f"width must double from block to block, in whole numbers, as [x; K x] does; got {tuple(width)}"
        )
    return tuple(map(int, width))


class Cost(NamedTuple):
    """What a layer needs; add several by `total`.

    Attributes:
        weights: real numbers to learn and to store.
        multiply_adds: multiply-adds of one application to one image.
    """

    weights: int
    multiply_adds: int


def total(costs: Sequence[Cost]) -> Cost:
    """Σ of the costs, entry by entry: a row of Table 1 from its parts."""
    return Cost(sum(cost.weights for cost in costs), sum(cost.multiply_adds for cost in costs))


def fully_coupled(grid: Sequence[int], window: Sequence[int], c_in: int, c_out: int, *, method: str = "direct") -> Cost:
    """K, Eq. (4): m²·c_in·c_out weights; n·m²·c_in·c_out multiply-adds (n pixels, m² points of the window).

    Args:
        grid: points per axis; n = Π grid.
        window: points of the stencil per axis, no more than the grid's.
        c_in: channels in.
        c_out: channels out.
        method: "direct", or "fft" or "matmul": c_in + c_out transforms and a matrix product a frequency.

    Returns:
        Weights and multiply-adds of one application to one image.

    Raises:
        ValueError: a size below one, a window that does not fit the grid, unknown method.
    """
    n, m = _sizes(grid, window, c_in, c_out)
    check_choice("method", method, METHODS)
    weights = m * c_in * c_out
    if method == "direct":
        return Cost(weights, n * weights)
    return Cost(weights, _filter(grid, method, transforms=c_in + c_out, products=c_in * c_out))


def depthwise(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "direct") -> Cost:
    """K_dw, Eq. (5): m²c weights; n·m²·c multiply-adds directly, O(n log n · c) by FFT whatever m is.

    Args, Returns, Raises: as `fully_coupled`.
    """
    n, m = _sizes(grid, window, channels)
    check_choice("method", method, METHODS)
    weights = m * channels
    if method == "direct":
        return Cost(weights, n * weights)
    return Cost(weights, _filter(grid, method, transforms=2 * channels, products=channels))


def pointwise(grid: Sequence[int], c_in: int, c_out: int) -> Cost:
    """M, Eq. (6): c_in·c_out weights; n·c_in·c_out multiply-adds.

    Args, Returns, Raises: as `fully_coupled`.
    """
    n, _ = _sizes(grid, (1,) * len(grid), c_in, c_out)
    return Cost(c_in * c_out, n * c_in * c_out)


def linear_mix(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "direct") -> Cost:
    """K_lm = K_dw + M, Eq. (7): m²c + c² weights, the diagonal of M included, as in Table 2; n(m²c + c²) multiply-adds.

    Args, Returns, Raises: as `fully_coupled`; the method is that of K_dw.
    """
    return total([depthwise(grid, window, channels, method=method), pointwise(grid, channels, channels)])


def circulant(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "fft") -> Cost:
    """K_circ, Eq. (12): m²c weights; O(nc log nc) multiply-adds by F₃, n·m²·c² written out directly.

    Args, Returns, Raises: as `fully_coupled`.
    """
    n, m = _sizes(grid, window, channels)
    check_choice("method", method, METHODS)
    weights = m * channels
    if method == "direct":
        return Cost(weights, n * weights * channels)
    return Cost(weights, _filter((*grid, channels), method))


def explicit_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "direct") -> Cost:
    """y + h(-KᵀK y + σ(N(M y))), Eq. (9): m²c + c² weights; n(2m²c + c²) multiply-adds directly: K, Kᵀ and M.

    Args, Returns, Raises: as `fully_coupled`; the method is that of KᵀK, by "fft" and "matmul" a single filter |λ|².
    """
    convolution = depthwise(grid, window, channels, method=method)
    diffusion = 2 * convolution.multiply_adds
    if method != "direct":
        diffusion = _filter(grid, method, transforms=2 * channels, products=channels, real=True)
    return total([Cost(convolution.weights, diffusion), pointwise(grid, channels, channels)])


def implicit_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "fft") -> Cost:
    """(I + h KᵀK)⁻¹(y + h σ(N(M y))), Eq. (11): m²c + c² weights; O(n(log n · c + c²)) multiply-adds.

    Args, Returns, Raises: as `fully_coupled`; an inverse has no direct method.
    """
    check_choice("method", method, SPECTRAL)
    return explicit_rd(grid, window, channels, method=method)  # the same filter with 1 / (1 + h|λ|²) for |λ|²


def circulant_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "fft") -> Cost:
    """Eq. (9) with K_circ for K_dw: m²c + c² weights; O(nc log nc + nc²) multiply-adds.

    The last row of Table 1 gives the order of the diffusion alone; the reaction's M, whose c² weights it does count,
    needs n·c² on top.

    Args, Returns, Raises: as `explicit_rd`.
    """
    convolution = circulant(grid, window, channels, method=method)
    diffusion = 2 * convolution.multiply_adds
    if method != "direct":
        diffusion = _filter((*grid, channels), method, real=True)
    return total([Cost(convolution.weights, diffusion), pointwise(grid, channels, channels)])


def implicit_circulant_rd(grid: Sequence[int], window: Sequence[int], channels: int, *, method: str = "fft") -> Cost:
    """(I + h KᵀK)⁻¹(y + h σ(N(M y))) with K = K_circ: the cost of `circulant_rd`, whose filter it changes.

    Args, Returns, Raises: as `fully_coupled`; an inverse has no direct method.
    """
    check_choice("method", method, SPECTRAL)
    return circulant_rd(grid, window, channels, method=method)


def network(
    architecture: str,
    width: str | Sequence[int],
    num_classes: int,
    image_shape: Sequence[int],
    *,
    kernel_size: int = 3,
    steps_per_block: int = 4,
    method: str | None = None,
) -> Cost:
    """Σ over the layers of Section 4's network on one image: opening, steps, connecting layers, classifier.

    Args:
        architecture: "resnet", "mobilenet", "linear_mix", "explicit_rd", "implicit_rd", "circulant_rd" or
            "implicit_circulant_rd".
        width: "A", "B", "C", or the channels of each block, each twice the one before.
        num_classes: outputs of the classifier.
        image_shape: [*grid, C_in]; every axis of the grid divisible by 2^(blocks - 1).
        kernel_size: points of the stencils per axis; the opening has 5.
        steps_per_block: steps in each block.
        method: of the steps' convolutions; if not given "fft" for the implicit and the circulant networks and "direct"
            for the others, as in Table 1. The opening and the connecting layers are direct.

    Returns:
        Weights and multiply-adds.

    Raises:
        ValueError: unknown architecture, width or method, a size below one, a grid that cannot be halved or gets
            smaller than the stencil.

    Example:
        >>> network("implicit_rd", "A", 10, (32, 32, 3)).weights
        101066
    """
    check_choice("architecture", architecture, tuple(_STEPS))
    *grid, c = image_shape
    widths = block_channels(width)
    layer, layers_per_step = _STEPS[architecture]
    options = {} if method is None else {"method": method}
    halvings = 2 ** (len(widths) - 1)
    if not grid or any(n % halvings for n in grid):
        raise ValueError(
            f"image_shape must be [*grid, C_in] with grid axes divisible by {halvings}, since {len(widths)} blocks "
            f"halve the grid {len(widths) - 1} times; got {list(image_shape)}"
        )
    if steps_per_block < 1:
        raise ValueError(f"steps_per_block must be at least 1, got {steps_per_block}")
    window = (kernel_size,) * len(grid)
    layers = [fully_coupled(grid, (5,) * len(grid), c, widths[0])]
    for block, c in enumerate(widths):
        points = [n // 2**block for n in grid]
        layers += steps_per_block * layers_per_step * [layer(points, window, c, **options)]
        layers += [depthwise(points, window, c)]  # [x; K_dw x] passes x on as it is
    layers += [pointwise((), 2 * widths[-1], num_classes), Cost(num_classes, 0)]  # the bias
    return total(layers)


def _square(grid, window, c, **options):
    return fully_coupled(grid, window, c, c, **options)


_STEPS: dict[str, tuple[Callable[..., Cost], int]] = {
    "resnet": (_square, 2),  # K₂ᵀσ(N(K₁y)), Eq. (3)
    "mobilenet": (linear_mix, 1),  # K_dw and M one after the other cost what their sum does, Eq. (13)
    "linear_mix": (linear_mix, 2),  # Eq. (3) with Eq. (7)
    "explicit_rd": (explicit_rd, 1),
    "implicit_rd": (implicit_rd, 1),
    "circulant_rd": (circulant_rd, 1),
    "implicit_circulant_rd": (implicit_circulant_rd, 1),
}
"""What a step applies, and how many times."""


def _sizes(grid, window, *channels):
    """n = Π grid and m² = Π window."""
    if len(window) != len(grid) or any(m > n for m, n in zip(window, grid, strict=True)):
        raise ValueError(f"window must fit the grid {list(grid)} axis by axis, got {list(window)}; use a larger grid")
    if min(*grid, *window, *channels) < 1:
        raise ValueError(
            f"grid, window and channels must be at least 1, got {list(grid)}, {list(window)} and {list(channels)}"
        )
    return math.prod(grid), math.prod(window)


def _filter(grid, method, *, transforms=2, products=1, real=False):
    """Multiply-adds of F⁻¹(λ ⊙ F y): so many transforms (back ones included) and products with a symbol of the grid."""
    n = math.prod(grid)
    if method == "fft":  # of a real signal half the spectrum is enough: n / 2 products of a complex number
        transform, product = 5 / 4 * n * math.log2(n), (1 if real else 2) * n
    else:
        transform, product = n * sum(grid), n * 2 ** (len(grid) - real)  # λ has 2ᵈ parts, a real one half of them
    return round(transforms * transform + products * product)
