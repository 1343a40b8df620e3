"""Every operator, adjoint, diffusion and resolvent is its printed matrix, Eqs. (4)-(12)."""

from functools import partial

import jax
import matrices
import numpy as np
import pytest
from cases import CASE, assert_close, over_all, over_bounded

import lowcost

pytestmark = pytest.mark.usefixtures("x64")

SIZES = [  # batch axes, window, grid: odd, even, not square, as small as the stencil, down to a single pixel
    ((3,), (4,), (7,)),
    ((), (5,), (5,)),
    ((3, 2), (3, 3), (6, 5)),
    ((), (2, 3), (2, 3)),
    ((1, 2), (1, 1), (1, 1)),
    ((2,), (3, 1, 2), (3, 4, 2)),
]
SYMBOLS = [((3,), (5,)), ((4, 1), (4, 3)), ((2, 3, 1), (2, 3, 2)), ((2, 1, 2, 3), (3, 2, 2, 3))]  # window, grid


def check(case, options, rtol, batch, window, grid, **drawn):
    """Asserts that the result with each of the options is the matrix product, with the dtype of y."""
    weights, y = case.draw(window, grid, batch, **drawn)
    results, expected = case.every(options, weights, y), case.expected(options, weights, y, grid)
    for chosen, result, dense in zip(options, results, expected, strict=True):
        assert result.dtype == y.dtype
        assert_close(result, dense, rtol, chosen)


@over_all
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_its_matrix(case, sizes):
    """K, Kᵀ, −KᵀK and (I + hKᵀK)⁻¹ are their matrices, by default and by every method."""
    check(case, [{}, *case.ways], 1e-12, *sizes)


@over_bounded
@pytest.mark.parametrize("sizes", [((), (4,), (5,)), ((2,), (3, 2), (3, 4))], ids=str)
def test_equals_its_matrix_at_every_boundary(case, sizes):
    """K, Kᵀ and −KᵀK are their matrices for every boundary, by every method."""
    check(case, case.bounded, 1e-12, *sizes)


@over_all
def test_equals_its_matrix_on_four_axes(case):
    """Transforms give it for every boundary; "direct" is refused, because accelerators convolve at most three axes."""
    spectral = [way for way in case.bounded or case.ways if way.get("method") in (None, "fft", "matmul")]
    check(case, [{}, *spectral], 1e-12, (2,), (2, 1, 3, 2), (3, 2, 3, 2))
    if "direct" in case.methods:
        weights, y = case.draw((1, 2, 1, 2), (2, 2, 2, 2))
        with pytest.raises(ValueError, match="method on four grid axes must be one of 'auto', 'fft', 'matmul'"):
            case.function(*weights, y, method="direct")


@over_all
def test_equals_its_matrix_in_float32(case):
    """Every method is accurate to 1e-5 in float32."""
    check(case, case.ways, 1e-5, (2,), (3, 2), (4, 5), dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(
    "name", ["circulant", "circulant_adjoint", "circulant_resolvent", "circulant_resolvent_mirrored"]
)
def test_any_number_of_channels(name, channels):
    """Eq. (12) transforms the channels, which may be one or an even number."""
    check(CASE[name], CASE[name].ways, 1e-12, (), (2,), (3,), channels=channels)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("window", "grid"), SYMBOLS, ids=str)
def test_symbols(window, grid, channels):
    """λ = F₂(C e₁), Eq. (10), and λ = F₃(K_circ e₁), Section 3.2.3."""
    (stencil,), y = CASE["depthwise"].draw(window, grid, channels=channels)
    first, axes = (0,) * len(grid), tuple(range(len(grid)))
    each, one = np.zeros_like(y), np.zeros_like(y)
    each[first] = one[(*first, 0)] = 1  # e₁ of every channel by itself, and of the image as a whole
    columns = matrices.product(matrices.depthwise(stencil, grid), each, grid)
    np.testing.assert_allclose(lowcost.symbol(stencil, grid), np.fft.fftn(columns, axes=axes), atol=1e-12)
    column = matrices.product(matrices.circulant(stencil, grid), one, grid)
    np.testing.assert_allclose(lowcost.circulant_symbol(stencil, grid), np.fft.fftn(column), atol=1e-12)


@pytest.mark.parametrize(("window", "grid"), [((3,), (5,)), ((3, 2), (3, 4)), ((1, 2, 2, 1), (2, 3, 2, 2))], ids=str)
def test_apply_symbol(window, grid):
    """F⁻¹(λ ⊙ F y) is C y, with conj(λ) it is Cᵀy, with |λ|² it is CᵀCy."""
    (stencil,), y = CASE["depthwise"].draw(window, grid, (2,))
    k, symbol = matrices.depthwise(stencil, grid), lowcost.symbol(stencil, grid)
    np.testing.assert_allclose(lowcost.squared_modulus(symbol), np.abs(symbol) ** 2, rtol=1e-12)
    for method in ("auto", "fft", "matmul"):
        apply = jax.jit(partial(lowcost.apply_symbol, method=method))
        for s, matrix in ((symbol, k), (symbol.conj(), k.T), (lowcost.squared_modulus(symbol), k.T @ k)):
            assert_close(apply(s, y), matrices.product(matrix, y, grid))
