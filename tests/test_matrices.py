"""Checks the oracle itself against the patterns that the paper prints, and against SciPy."""

import matrices
import numpy as np
import pytest
import scipy.ndimage

GRID = (4,)
THETA = np.random.default_rng(0).normal(size=(3, 16))  # θ⁽¹⁾ ... θ⁽¹⁶⁾, one per column


@pytest.mark.parametrize(
    ("operator", "stencil", "printed"),
    [
        (
            matrices.fully_coupled,  # Eq. (4) numbers the stencils along its rows, and a row is an output channel
            THETA.reshape(3, 4, 4).swapaxes(1, 2),
            [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]],
        ),
        (matrices.depthwise, THETA[:, :4], [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 4]]),
        (matrices.circulant, THETA[:, :4], [[1, 2, 3, 4], [4, 1, 2, 3], [3, 4, 1, 2], [2, 3, 4, 1]]),
    ],
)
def test_blocks_as_printed(operator, stencil, printed):
    """The blocks are those of Eqs. (4), (5), (12), where q means C(θ⁽q⁾) and 0 means an empty block."""
    block = {q: matrices.convolution(THETA[:, q - 1], GRID) for q in range(1, 17)} | {0: np.zeros((4, 4))}
    expected = np.block([[block[q] for q in row] for row in printed])
    np.testing.assert_array_equal(operator(stencil, GRID), expected)


def test_pointwise_as_printed():
    """Eq. (6) numbers along the columns, which are the input channels."""
    printed = [[1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [4, 8, 12, 16]]
    expected = np.block([[q * np.eye(4) for q in row] for row in printed])
    np.testing.assert_array_equal(matrices.pointwise(np.arange(1, 17).reshape(4, 4), GRID), expected)


@pytest.mark.parametrize(
    ("boundary", "mode"),
    [("periodic", "wrap"), ("zeros", "constant"), ("reflect", "mirror"), ("symmetric", "reflect")],
)
@pytest.mark.parametrize(("window", "grid"), [((3, 2), (4, 5)), ((4, 5), (4, 5)), ((2, 3, 1), (2, 3, 2))])
def test_convolution_is_a_correlation(window, grid, boundary, mode):
    """C(θ) is scipy.ndimage.correlate, for even sizes and all boundaries too."""
    rng = np.random.default_rng(1)
    stencil, y = rng.normal(size=window), rng.normal(size=grid)
    result = matrices.product(matrices.convolution(stencil, grid, boundary), y[..., None], grid)[..., 0]
    np.testing.assert_allclose(result, scipy.ndimage.correlate(y, stencil, mode=mode), atol=1e-13)


@pytest.mark.parametrize(
    ("operator", "first", "axes"), [("depthwise", np.s_[0, 0], (0, 1)), ("circulant", np.s_[0, 0, 0], (0, 1, 2))]
)
def test_printed_fft_formulas(operator, first, axes):
    """C y = F₂⁻¹(F₂(C e₁) ⊙ F₂ y), Eq. (10), and the same of K_circ with F₃, Section 3.2.3."""
    grid, rng = (4, 3), np.random.default_rng(2)
    y, e1 = rng.normal(size=(*grid, 5)), np.zeros((*grid, 5))
    e1[first] = 1
    matrix = getattr(matrices, operator)(rng.normal(size=(3, 2, 5)), grid)
    spectrum = np.fft.fftn(matrices.product(matrix, e1, grid), axes=axes) * np.fft.fftn(y, axes=axes)
    np.testing.assert_allclose(matrices.product(matrix, y, grid), np.fft.ifftn(spectrum, axes=axes), atol=1e-13)
