"""Tests the resolvents with boundary="symmetric", which avoid wrap-around by the cosine transform."""

import itertools
from functools import cache, partial, reduce

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import scipy.fft
from cases import CASE, H, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import lowcost
from lowcost import methods, real_dft, spectral

pytestmark = pytest.mark.usefixtures("x64")

SIZES = [  # window, grid: odd, even, prime, as small as the stencil, not square, one to three axes
    ((3,), (7,)),
    ((5,), (8,)),
    ((3,), (3,)),
    ((1,), (1,)),
    ((3, 5), (6, 5)),
    ((3, 3), (3, 4)),
    ((3, 1, 3), (3, 2, 5)),
]
SMALL = st.sampled_from([((2,), (5,)), ((3, 2), (3, 4))])  # few, because each is compiled
SCALARS = st.floats(-4, 4, width=16)
over_slim = pytest.mark.parametrize("name", ["depthwise", "circulant"])


def convolution(stencil, grid):
    """Returns K of one channel, row by row: the stencil on the image that NumPy pads by its mode "symmetric"."""
    reach = [(m // 2, m - 1 - m // 2) for m in stencil.shape]
    places = np.pad(np.arange(np.prod(grid)).reshape(grid), reach, mode="symmetric")
    rows = np.zeros((np.prod(grid),) * 2)
    for row, start in enumerate(itertools.product(*map(range, grid))):
        window = places[tuple(slice(i, i + m) for i, m in zip(start, stencil.shape, strict=True))]
        np.add.at(rows[row], window.ravel(), stencil.ravel())
    return rows


def with_parity(stencil, parities):
    """Returns the part of a stencil of odd sizes that is even (1) or odd (-1) along each axis."""
    for axis, parity in enumerate(parities):
        stencil = (stencil + parity * np.flip(stencil, axis)) / 2
    return stencil


@cache
def compiled(name, **options):
    return jax.jit(partial(getattr(lowcost, f"{name}_resolvent"), boundary="symmetric", **options))


@pytest.mark.parametrize(("window", "grid"), SIZES, ids=str)
def test_it_is_the_inverse_for_stencils_that_are_even_or_odd_along_each_axis(window, grid):
    """(I + hKᵀK)⁻¹ with K = depthwise(boundary="symmetric"), by every method; each channel has parities of its own."""
    rng = np.random.default_rng(0)
    parities = list(itertools.product((1, -1), repeat=len(grid)))
    stencil = np.stack([with_parity(rng.normal(size=window), p) for p in parities], axis=-1)
    y = rng.normal(size=(2, *grid, len(parities)))
    expected = np.empty_like(y)
    for c in range(len(parities)):
        k = convolution(stencil[..., c], grid)
        np.testing.assert_allclose(k, matrices.convolution(stencil[..., c], grid, "symmetric"), atol=1e-14)
        flat = y[..., c].reshape(2, -1).T
        expected[..., c] = np.linalg.solve(np.eye(len(k)) + H * k.T @ k, flat).T.reshape(2, *grid)
    for method in ("fft", "matmul", "auto"):
        assert_close(compiled("depthwise", method=method)(stencil, y, H), expected, 1e-10, method)


def test_the_circulant_one_is_the_inverse_for_stencils_that_are_even_along_the_grid():
    rng = np.random.default_rng(0)
    stencil, y = with_parity(rng.normal(size=(3, 3, 4)), (1, 1)), rng.normal(size=(2, 4, 5, 4))
    k = matrices.circulant(stencil, (4, 5), "symmetric")
    expected = matrices.product(np.linalg.inv(np.eye(len(k)) + H * k.T @ k), y, (4, 5))
    for method in ("fft", "matmul", "auto"):
        assert_close(compiled("circulant", method=method)(stencil, y, H), expected, 1e-10, method)


@pytest.mark.parametrize(("window", "grid"), [((4,), (6,)), ((3, 2), (3, 4)), ((2, 3, 2), (2, 3, 4))], ids=str)
def test_it_is_the_best_that_the_cosine_transform_diagonalises(window, grid):
    """It is nearest, in the Frobenius norm, to the inverse on the mirrored grid cut back to the image."""
    stencil = np.random.default_rng(0).normal(size=window)
    doubled, n = [2 * n for n in grid], np.prod(grid)
    k = matrices.convolution(stencil, doubled)
    inside = np.arange(np.prod(doubled)).reshape(doubled)[tuple(map(slice, grid))].ravel()
    cut_back = (np.linalg.inv(np.eye(len(k)) + H * k.T @ k) @ matrices.mirror(grid, 1))[inside]
    images = np.eye(n).reshape(n, *grid, 1)
    ours = np.asarray(compiled("depthwise")(stencil[..., None], images, H)).reshape(n, n).T
    dct = reduce(np.kron, [scipy.fft.dct(np.eye(n), axis=0, norm="ortho") for n in grid])
    eigenvalues = np.diag(dct @ ours @ dct.T)
    np.testing.assert_allclose(dct.T @ np.diag(eigenvalues) @ dct, ours, atol=1e-12)
    # These are the coefficients of the orthonormal matrices that span all matrices that the DCT diagonalises.
    np.testing.assert_allclose(np.diag(dct @ cut_back @ dct.T), eigenvalues, atol=1e-12)
    if len(grid) == 1:  # |λ|² is even, and the inverse maps mirror images to mirror images
        np.testing.assert_allclose(cut_back, ours, atol=1e-12)


@over_slim
@pytest.mark.parametrize(("window", "grid"), [((3,), (5,)), ((2, 3), (3, 4)), ((2, 1, 2), (2, 2, 3))], ids=str)
def test_it_is_the_inverse_on_the_mirrored_grid_averaged_over_its_reflections(name, window, grid):
    """Eᵀ (I + hKᵀK)⁻¹ E / 2ᵈ for any stencil, by every method, where E puts an image next to its mirror images."""
    case = CASE[f"{name}_resolvent_mirrored"]
    weights, y = case.draw(window, grid, (2,))
    ways = [{}, *case.ways]
    for way, result, expected in zip(
        ways, case.every(ways, weights, y), case.expected(ways, weights, y, grid), strict=True
    ):
        assert_close(result, expected, message=way)


@over_slim
@given(h=st.floats(0, 1e6), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=30)
def test_it_is_symmetric_and_never_amplifies(name, h, data):
    """⟨Ry, z⟩ = ⟨y, Rz⟩ and ⟨y, Ry⟩ ≥ |Ry|² ≥ 0: its eigenvalues are in [0, 1]. With mean zero, constants stay."""
    window, grid = data.draw(SMALL)
    stencil = data.draw(hnp.arrays(np.float64, (*window, 3), elements=SCALARS))
    y, z = (data.draw(hnp.arrays(np.float64, (*grid, 3), elements=SCALARS)) for _ in range(2))
    ry, rz = (np.asarray(compiled(name)(stencil, x, h)) for x in (y, z))
    rounding = 1e-12 * (1 + np.linalg.norm(y) * np.linalg.norm(z))
    assert abs(np.vdot(ry, z) - np.vdot(y, rz)) <= rounding
    assert np.vdot(y, ry) >= np.vdot(ry, ry) - 1e-12 * (1 + np.vdot(y, y))
    zero_mean = stencil - stencil.mean(axis=tuple(range(stencil.ndim - (name == "depthwise"))))
    np.testing.assert_allclose(compiled(name)(zero_mean, np.full_like(y, y.flat[0]), h), y.flat[0], atol=1e-9)


def test_opposite_edges_do_not_meet():
    """The response to an impulse at one end decays up to the other end; on a periodic grid the ends are neighbours."""
    stencil, y = np.array([-1.0, 2.0, -1.0])[:, None], np.eye(1, 24).T
    mirrored, periodic = (
        np.abs(lowcost.depthwise_resolvent(stencil, y, 1.0, boundary=boundary))[:, 0]
        for boundary in ("symmetric", "periodic")
    )
    assert mirrored[-1] < 1e-4 * mirrored[0]
    assert periodic[-1] > 1e-1 * periodic[0]


@pytest.mark.parametrize("name", ["depthwise_resolvent_mirrored", "circulant_resolvent_mirrored"])
def test_a_symbol_by_fft(name, monkeypatch):
    """Large grids need it, because their matrix of the DFT would be too large for a constant."""
    case = CASE[name]
    weights, y = case.draw((3, 2), (4, 5), (2,))
    monkeypatch.setattr(spectral, "LARGEST_CONSTANT", 0)
    ways = [{"method": "fft"}, {"method": "matmul"}]
    for result, expected in zip(case.every(ways, weights, y), case.expected(ways, weights, y, (4, 5)), strict=True):
        assert_close(result, expected)


def test_a_long_axis_by_fft():
    """No matrix of the transform is made."""
    stencil, y = np.array([-1.0, 2.0, -1.0])[:, None], np.random.default_rng(0).normal(size=(5000, 1))
    made = real_dft.cosine_basis.cache_info().misses
    result = lowcost.depthwise_resolvent(stencil, y, 3.0, boundary="symmetric")
    assert real_dft.cosine_basis.cache_info().misses == made
    λ = 2 - 2 * np.cos(np.pi * np.arange(5000) / 5000)[:, None]
    expected = scipy.fft.idct(scipy.fft.dct(y, axis=0) / (1 + 3 * λ**2), axis=0)
    assert_close(result, expected)


@over_slim
@pytest.mark.parametrize("boundary", ["reflect", "zeros", "mirror"])
def test_other_boundaries_are_refused(name, boundary):
    resolvent = getattr(lowcost, f"{name}_resolvent")
    with pytest.raises(ValueError, match=f"boundary must be one of 'periodic', 'symmetric' here, got '{boundary}'"):
        resolvent(jnp.ones((3, 1)), jnp.ones((4, 1)), 1.0, boundary=boundary)


def test_the_method_is_chosen_as_for_a_filter_whose_fft_is_slower():
    """A long axis gets no matrix; a run that measures its CPU measures this filter."""
    real, mirrored = (
        methods.known_seconds(methods.Point(operator, (32, 32), (32, 32), 32), "cpu")
        for operator in ("real", "mirrored")
    )
    assert mirrored["matmul"] == real["matmul"]
    assert 2 < mirrored["fft"] / real["fft"] <= 3
    assert methods.known_seconds(methods.Point("mirrored", (16_384,), (16_384,), 3), "cpu").keys() == {"fft"}
    asked = set()
    with methods.decided_by(asked.add):
        arrays = jnp.ones((3, 3, 2)), jnp.ones((2, 8, 8, 2)), 1.0
        jax.eval_shape(partial(lowcost.depthwise_resolvent, boundary="symmetric"), *arrays)
    assert asked == {methods.Point("mirrored", (8, 8), (8, 8), 2)}
