"""Tests identities that hold for all weights and images: adjoints, solves, reductions, symmetries, stability."""

from functools import cache, partial

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from cases import BOUNDARIES, CASE, CASES, OPERATORS, H, over_all
from hypothesis import given, settings
from hypothesis import strategies as st

import lowcost

pytestmark = pytest.mark.usefixtures("x64")

SIZES = st.sampled_from([((2,), (5,)), ((3, 2), (3, 4))])  # few, because each is compiled
STEPS = st.floats(0, 1e6)
SCALARS = st.floats(-4, 4, width=16)
examples = partial(settings, deadline=None, derandomize=True)
over_slim = pytest.mark.parametrize("name", ["depthwise", "circulant"])
over_boundaries = pytest.mark.parametrize("boundary", BOUNDARIES)


def numbers(*shape):
    """Returns a strategy for arrays with entries of any sign, including zeros and repetitions."""
    return hnp.arrays(np.float64, shape, elements=SCALARS)


@st.composite
def problems(draw, name, features=1):
    """Draws weights of an operator, then the given number of features."""
    window, grid = draw(SIZES)
    weights = tuple(draw(numbers(*shape)) for shape in CASE[name].shapes(window, 3))
    return weights, *(draw(numbers(*grid, CASE[name].channels(weights))) for _ in range(features))


@cache
def compiled(name, **options):
    return jax.jit(partial(getattr(lowcost, name), **options))


def assert_equal(actual, expected, weights, y, step=0.0):
    """Asserts equality up to the rounding of sums that are at most (1 + Σ|θ|)² (1 + h) Σ|y|."""
    bound = (1 + sum(np.abs(w).sum() for w in weights)) ** 2 * (1 + step) * np.abs(y).sum()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14 * bound)


@over_boundaries
@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
@examples(max_examples=20)
def test_adjoint(name, boundary, data):
    """⟨Ky, z⟩ = ⟨y, Kᵀz⟩, and hence ⟨y, −KᵀKy⟩ = −|Ky|²: the diffusion of Eq. (8) never adds energy."""
    options = {} if name == "pointwise" else {"boundary": boundary}
    weights, y = data.draw(problems(name))
    ky = compiled(name, **options)(*weights, y)
    z = data.draw(numbers(*ky.shape))
    kz = compiled(f"{name}_adjoint", **options)(*weights, z)
    assert_equal(np.vdot(ky, z), np.vdot(y, kz), weights, np.outer(y, z))
    if "_diffusion" in OPERATORS[name][1]:
        flow = compiled(f"{name}_diffusion", **options)(*weights, y)
        assert_equal(np.vdot(y, flow), -np.vdot(ky, ky), weights, np.outer(y, y))


@over_slim
@given(h=STEPS, data=st.data())
@examples(max_examples=30)
def test_solve(name, h, data):
    """(I + hKᵀK)(I + hKᵀK)⁻¹ y = y, Eq. (11), in either order, and |(I + hKᵀK)⁻¹ y| ≤ |y| for all θ."""
    weights, y = data.draw(problems(name))
    diffusion, resolvent = compiled(f"{name}_diffusion"), compiled(f"{name}_resolvent")
    solved = resolvent(*weights, y, h)
    assert_equal(solved - h * diffusion(*weights, solved), y, weights, y, h)
    assert_equal(resolvent(*weights, y - h * diffusion(*weights, y), h), y, weights, y, h)
    assert np.linalg.norm(solved) <= np.linalg.norm(y) * (1 + 1e-12)


@over_slim
@given(h=STEPS, data=st.data())
@examples(max_examples=10)
def test_solve_without_diffusion(name, h, data):
    """h = 0 or θ = 0 leaves y unchanged, and the derivative at h = 0 is the diffusion −KᵀKy."""
    (stencil,), y = data.draw(problems(name))
    resolvent = compiled(f"{name}_resolvent")
    assert_equal(resolvent(0 * stencil, y, h), y, [], y)
    start, slope = jax.jvp(partial(resolvent, stencil, y), (0.0,), (1.0,))
    assert_equal(start, y, [], y)
    assert_equal(slope, compiled(f"{name}_diffusion")(stencil, y), [stencil], y)


@over_slim
@given(h=STEPS, constant=SCALARS, data=st.data())
@examples(max_examples=20)
def test_zero_mean_stencil_keeps_constants(name, h, constant, data):
    """λ(0) = 0 if the stencil sums to zero: constants stay constant for every h."""
    (stencil,), y = data.draw(problems(name))
    stencil = stencil - stencil.mean(axis=tuple(range(stencil.ndim - (name == "depthwise"))))
    y = np.full_like(y, constant)
    for boundary in ("periodic", "reflect"):
        assert_equal(compiled(f"{name}_diffusion", boundary=boundary)(stencil, y), 0 * y, [stencil], y)
    assert_equal(compiled(f"{name}_resolvent")(stencil, y, h), y, [stencil], y)


@over_all
@given(a=SCALARS, shift=st.integers(-5, 5), data=st.data())
@examples(max_examples=10)
def test_linear_and_equivariant(case, a, shift, data):
    """f(a y + z) = a f(y) + f(z), and f commutes with shifts of the grid, for Eq. (12) also of the channels."""
    weights, y, z = data.draw(problems(str(case), 2))
    f = compiled(str(case), **({"h": H} if case.form == "_resolvent" else {}))
    fy = f(*weights, y)
    assert_equal(f(*weights, a * y + z), a * fy + f(*weights, z), weights, np.abs([a * y, z, y]))
    for axis in range(y.ndim - (case.operator != "circulant")):
        assert_equal(f(*weights, np.roll(y, shift, axis)), np.roll(fy, shift, axis), weights, y)


@pytest.mark.parametrize("name", [str(case) for case in CASES if case.form in ("", "_adjoint")])
@given(a=SCALARS, data=st.data())
@examples(max_examples=10)
def test_linear_in_the_weights(name, a, data):
    """K(aθ + θ') = a K(θ) + K(θ')."""
    weights, y = data.draw(problems(name))
    others = tuple(data.draw(numbers(*w.shape)) for w in weights)
    both = compiled(name)(*(a * v + w for v, w in zip(weights, others, strict=True)), y)
    expected = a * compiled(name)(*weights, y) + compiled(name)(*others, y)
    assert_equal(both, expected, (*weights, *others), (1 + abs(a)) * y)


@over_boundaries
@given(q=st.integers(0, 2), data=st.data())
@examples(max_examples=10)
def test_reductions(boundary, q, data):
    """Eqs. (5), (6), (7), (12) are Eq. (4) with a mask, and reduce to each other if some weights are zero."""
    (stencil, matrix), y = data.draw(problems("linear_mix"))
    run = {name: compiled(name, boundary=boundary) for name in OPERATORS if name != "pointwise"}
    depthwise, pointwise = run["depthwise"](stencil, y), compiled("pointwise")(matrix, y)
    equal = partial(assert_equal, weights=(stencil, stencil, stencil, matrix), y=y)

    diagonal, small = stencil[..., None] * np.eye(3), matrix[(None,) * (stencil.ndim - 1)]
    equal(run["fully_coupled"](diagonal, y), depthwise)
    equal(run["fully_coupled"](small, y), pointwise)
    repeated = stencil[..., np.subtract.outer(np.arange(3), np.arange(3)) % 3]
    equal(run["fully_coupled"](repeated, y), run["circulant"](stencil, y))
    equal(run["linear_mix"](stencil, matrix, y), depthwise + pointwise)
    equal(run["linear_mix"](stencil, 0 * matrix, y), depthwise)
    equal(run["linear_mix"](0 * stencil, matrix, y), pointwise)

    alone = np.where(np.arange(3) == q, stencil, 0)  # block (i, j) is C(θ⁽q⁾) where j = i + q and else nothing
    same = np.repeat(stencil[..., q : q + 1], 3, axis=-1)
    equal(run["circulant"](alone, y), run["depthwise"](same, np.roll(y, -q, axis=-1)))


@pytest.mark.parametrize("channels", [3, 200])  # a product with patches, or XLA's convolution if that is too large
def test_a_stencil_wider_than_the_features(channels):
    """float64 weights with float32 features are computed in float64 and returned in float32, directly and by FFT."""
    rng = np.random.default_rng(0)
    stencil, z = rng.normal(size=(3, 3, channels, 2)), rng.normal(size=(4, 4, 2)).astype(np.float32)
    direct, fft = (lowcost.fully_coupled_adjoint(stencil, z, method=method) for method in ("direct", "fft"))
    assert direct.dtype == fft.dtype == np.float32
    np.testing.assert_allclose(direct, fft, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"method": "matmul"}, {"method": "fft", "boundary": "symmetric"}], ids=str)
def test_each_channel_may_have_its_own_time_step(options):
    """The result is that of each channel alone; other shapes, which could broadcast along the grid, are refused."""
    (stencil,), y = CASE["depthwise"].draw((3, 2), (4, 3), (2,))
    h = np.array([0.0, 0.5, 8.0])
    resolvent = partial(lowcost.depthwise_resolvent, **options)
    alone = [resolvent(stencil[..., c : c + 1], y[..., c : c + 1], h[c]) for c in range(3)]
    np.testing.assert_allclose(resolvent(stencil, y, h), np.concatenate(alone, -1), atol=1e-13)
    with pytest.raises(ValueError, match=r"h must be a number, or one for each channel, got shape \[3, 1\]"):
        resolvent(stencil, y, h[:, None])
