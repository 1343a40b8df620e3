"""Tests projections of dense kernels on the low-cost classes, and dense kernels of low-cost operators."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowcost
from lowcost import convert

pytestmark = pytest.mark.usefixtures("x64")

FUNCTIONS = {
    "depthwise": jax.jit(convert.to_depthwise),
    "linear_mix": jax.jit(convert.to_linear_mix),
    "circulant": jax.jit(convert.to_circulant),
}
over_classes = pytest.mark.parametrize("name", FUNCTIONS)
drawn = given(window=st.sampled_from([(3,), (2, 4), (3, 1, 2)]), c=st.sampled_from([1, 4]), seed=st.integers(0, 99))
few = settings(deadline=None, max_examples=15)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def member(name, window, c, seed):
    """Returns a random operator of the class, as a dense kernel."""
    return written_out(name, normal(*window, c, seed=seed), normal(c, c, seed=seed + 1))


def projection(name, stencil):
    """Returns the nearest operator of the class, as a dense kernel, and its error."""
    *weights, error = FUNCTIONS[name](stencil)
    return written_out(name, *weights), error


def written_out(name, stencil, matrix=None):
    """Returns the weights of a class as a dense kernel [*window, C, C]."""
    stencil, channel = np.asarray(stencil), np.arange(stencil.shape[-1])
    if name == "circulant":
        return stencil[..., (channel[:, None] - channel) % len(channel)]
    dense = stencil[..., None] * np.eye(len(channel))
    if name == "linear_mix":
        dense[tuple(m // 2 for m in stencil.shape[:-1])] += matrix
    return dense


@over_classes
@few
@drawn
def test_projection_is_idempotent(name, window, c, seed):
    """A member of the class is its own projection with error 0, Eqs. (5), (7), (12)."""
    inside = member(name, window, c, seed)
    nearest, error = projection(name, inside)
    np.testing.assert_allclose(nearest, inside, atol=1e-14)
    assert error < 1e-15


@over_classes
@few
@drawn
def test_residual_is_orthogonal_to_the_class(name, window, c, seed):
    """⟨K - P K, L⟩_F = 0 for every L of the class; and the error is ‖K - P K‖_F / ‖K‖_F."""
    K = normal(*window, c, c, seed=seed)
    nearest, error = projection(name, K)
    assert abs(np.vdot(K - nearest, member(name, window, c, seed + 2))) < 1e-12
    np.testing.assert_allclose(error, np.linalg.norm(K - nearest) / np.linalg.norm(K), atol=1e-14)


@over_classes
@few
@drawn
def test_no_other_member_is_nearer(name, window, c, seed):
    """‖K - P K - ε L‖_F ≥ ‖K - P K‖_F for every L of the class."""
    K = normal(*window, c, c, seed=seed)
    nearest, _ = projection(name, K)
    perturbation = 1e-2 * member(name, window, c, seed + 2)
    assert np.linalg.norm(K - nearest - perturbation) > np.linalg.norm(K - nearest)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_error_does_not_depend_on_the_scale(name, scale):
    """Also where the squares of the kernel exceed the range of float32."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    *_, expected = FUNCTIONS[name](kernel)
    *_, error = FUNCTIONS[name](kernel * np.float32(scale))
    np.testing.assert_allclose(error, expected, rtol=1e-5)


@pytest.mark.parametrize("window", [(4,), (3, 3)], ids=str)
def test_linear_mix_is_the_masked_convolution(window):
    """K_lm of the weights is K with all but its diagonal blocks and 1x1 couplings masked, Section 3.1."""
    c, grid = 3, tuple(m + 2 for m in window)
    K, y = normal(*window, c, c), normal(*grid, c, seed=1)
    mask = np.broadcast_to(np.eye(c, dtype=bool), K.shape).copy()
    mask[tuple(m // 2 for m in window)] = True
    stencil, matrix, _ = FUNCTIONS["linear_mix"](K)
    converted = jax.jit(lowcost.linear_mix)(stencil, matrix, y)
    np.testing.assert_allclose(converted, jax.jit(lowcost.fully_coupled)(np.where(mask, K, 0), y), atol=1e-12)
    assert np.all(np.diag(matrix) == 0)


@over_classes
def test_zero_kernel_has_no_error(name):
    """K = 0 is in every class."""
    *weights, error = FUNCTIONS[name](np.zeros((3, 3, 2, 2)))
    assert error == 0
    assert not jax.grad(lambda K: FUNCTIONS[name](K)[-1])(np.zeros((3, 3, 2, 2))).any()
    assert not any(np.any(w) for w in weights)


@pytest.mark.parametrize(("window", "grid"), [((3,), (8,)), ((3, 2), (6, 5)), ((2, 1, 3), (3, 2, 4))], ids=str)
@pytest.mark.parametrize(
    "name", ["depthwise", "linear_mix", "circulant", "fully_coupled", "pointwise", "diffusion", "adjoint", "resolvent"]
)
def test_dense_stencil_is_the_operator(name, window, grid):
    """fully_coupled with the dense kernel is the operator on every grid at least as large as its reach, Eq. (4)."""
    c = 3
    θ, M = normal(*window, c), normal(c, c, seed=1)
    wide = tuple(2 * m - 1 for m in window)
    operator, reach = {
        "depthwise": (partial(lowcost.depthwise, θ), window),
        "linear_mix": (partial(lowcost.linear_mix, θ, M), window),
        "circulant": (partial(lowcost.circulant, θ), window),
        "fully_coupled": (partial(lowcost.fully_coupled, normal(*window, c, c + 1)), window),
        "pointwise": (partial(lowcost.pointwise, normal(c, c + 1)), (1,) * len(window)),
        "diffusion": (partial(lowcost.depthwise_diffusion, θ), wide),
        "adjoint": (partial(lowcost.depthwise_adjoint, θ), tuple(m + 1 - m % 2 for m in window)),
        "resolvent": (partial(lowcost.circulant_resolvent, θ, h=0.7), grid),
    }[name]
    grid = tuple(map(max, grid, reach))
    y = normal(*grid, c, seed=2)

    @jax.jit
    def both(y):
        return lowcost.fully_coupled(convert.dense_stencil(operator, reach, c), y), operator(y)

    np.testing.assert_allclose(*both(y), atol=1e-11)


def test_dense_stencil_writes_out_the_circulant():
    """Block (i, j) of K_circ is C(θ^(j-i mod c)), Eq. (12)."""
    θ = normal(3, 2, 4)
    dense = jax.jit(lambda θ: convert.dense_stencil(partial(lowcost.circulant, θ), (3, 2), 4))(θ)
    np.testing.assert_allclose(dense, written_out("circulant", θ), atol=1e-13)


@over_classes
def test_errors(name):
    """A kernel that is not square in its channels, empty or not real is an error."""
    with pytest.raises(ValueError, match=r"stencil must be \[\*window, C, C\].*got shape \[3, 3, 2, 4\]"):
        FUNCTIONS[name](np.zeros((3, 3, 2, 4)))
    with pytest.raises(ValueError, match="got shape"):
        FUNCTIONS[name](np.zeros((2, 2)))
    for shape in (3, 3, 0, 0), (0, 3, 2, 2):
        with pytest.raises(ValueError, match=r"stencil must hold numbers, got shape \[.*0.*\]"):
            FUNCTIONS[name](np.zeros(shape))
    with pytest.raises(TypeError, match="stencil must be real floating point"):
        FUNCTIONS[name](np.zeros((3, 3, 2, 2), int))
