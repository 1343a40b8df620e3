"""Compares spectra, norms, stable steps and Green's functions with the symbols and with dense matrices."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import lowcost
from lowcost import analysis
from lowcost.time_stepping import INTEGRATORS

pytestmark = pytest.mark.usefixtures("x64")

H = 0.7
C = 3
over_sizes = pytest.mark.parametrize(("window", "grid"), [((3,), (7,)), ((3, 2), (4, 5))], ids=str)
symbol, green_function = (jax.jit(f, static_argnums=1) for f in (lowcost.symbol, analysis.green_function))
green_tail, support_radius = jax.jit(analysis.green_tail), jax.jit(analysis.support_radius, static_argnums=1)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def operators(window):
    """Returns operators, adjoints, resolvents and compositions from C channels, which commute with shifts."""
    θ, M, K = normal(*window, C), normal(C, C, seed=1), normal(*window, C, C + 1, seed=2)
    circulant = partial(lowcost.circulant, θ, method="direct")
    table = {
        "depthwise": partial(lowcost.depthwise, θ),
        "resolvent": partial(lowcost.depthwise_resolvent, θ, h=H),
        "circulant": circulant,
        "circulant_adjoint": partial(lowcost.circulant_adjoint, θ, method="direct"),
        "linear_mix": partial(lowcost.linear_mix, θ, M),
        "composition": lambda y: lowcost.pointwise(M, circulant(y)),
        "fully_coupled": partial(lowcost.fully_coupled, K),
    }
    return {name: jax.jit(operator) for name, operator in table.items()}  # compiles each as a whole, not each operation


def assert_same_multisets(actual, expected, atol):
    """Asserts that the entries of the last axis agree up to their order."""
    actual, expected = (np.asarray(x).reshape(-1, np.shape(x)[-1]) for x in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        distance = np.abs(a[:, None] - b[None, :])
        assert distance[scipy.optimize.linear_sum_assignment(distance)].max() < atol


@over_sizes
def test_transfer_matrix_of_depthwise_is_its_symbol(window, grid):
    """K̂ of K_dw is diagonal with λ on the diagonal, Eq. (10)."""
    θ = normal(*window, C)
    transfer = analysis.transfer_matrix(operators(window)["depthwise"], grid, C)
    expected = np.asarray(symbol(θ, grid))[..., None] * np.eye(C)
    np.testing.assert_allclose(transfer, expected, atol=1e-12)


@over_sizes
def test_transfer_matrix_explains_every_operator(window, grid):
    """F(K y)_k = K̂_k (F y)_k for operators, adjoints, resolvents and compositions, also where C_out ≠ C_in."""
    y, axes = normal(*grid, C, seed=3), range(len(grid))
    for name, operator in operators(window).items():
        with jax.numpy_dtype_promotion("strict"):  # as some users set
            transfer = analysis.transfer_matrix(operator, grid, C)
        spectrum = np.einsum("...oi,...i->...o", transfer, np.fft.fftn(y, axes=axes))
        np.testing.assert_allclose(spectrum, np.fft.fftn(operator(y), axes=axes), atol=1e-11, err_msg=name)


def test_transfer_matrix_of_the_adjoint_is_hermitian_adjoint():
    """The block of Kᵀ is the conjugate transpose of that of K, Eq. (12)."""
    table = operators((3, 2))
    K, K_adjoint = (analysis.transfer_matrix(table[name], (4, 5), C) for name in ("circulant", "circulant_adjoint"))
    np.testing.assert_allclose(K_adjoint, np.conj(np.swapaxes(K, -1, -2)), atol=1e-12)


@over_sizes
def test_spectrum_of_circulant_is_its_symbol(window, grid):
    """The eigenvalues of K_circ at each spatial frequency are λ over the frequencies of the channels, Eq. (12)."""
    λ = jax.jit(lowcost.circulant_symbol, static_argnums=1)(normal(*window, C), grid)
    assert_same_multisets(analysis.spectrum(operators(window)["circulant"], grid, C), λ, 1e-11)


@pytest.mark.parametrize("name", ["depthwise", "linear_mix", "composition", "fully_coupled"])
def test_spectra_are_those_of_the_dense_matrix(name):
    """Eigenvalues, singular values, ρ and ‖·‖₂ are those of the whole matrix, Eqs. (4), (5), (7), (12)."""
    grid, operator = (4, 5), operators((3, 2))[name]
    dense = np.asarray(analysis.operator_matrix(operator, (*grid, C)))
    values = np.asarray(analysis.singular_values(operator, grid, C))
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(np.sort(values.ravel()), np.sort(np.linalg.svd(dense, compute_uv=False)), atol=1e-11)
    np.testing.assert_allclose(analysis.spectral_norm(operator, grid, C), np.linalg.norm(dense, 2), rtol=1e-12)
    if name != "fully_coupled":
        eigenvalues = np.linalg.eigvals(dense)
        assert_same_multisets(np.ravel(analysis.spectrum(operator, grid, C)), eigenvalues, 1e-10)
        np.testing.assert_allclose(analysis.spectral_radius(operator, grid, C), np.abs(eigenvalues).max(), rtol=1e-10)


def test_operator_matrix_is_the_operator():
    """The matrix times a raveled y is the operator's result, for any boundary and shape, Eq. (4)."""
    θ, y = normal(3, 2, C, C + 1), normal(4, 3, C, seed=1)
    operator = partial(lowcost.fully_coupled, θ, boundary="zeros")
    matrix = np.asarray(analysis.operator_matrix(operator, y.shape))
    np.testing.assert_allclose(matrix @ np.ravel(y), np.ravel(operator(y)), atol=1e-12)
    assert analysis.operator_matrix(operator, y.shape, jnp.float32).dtype == jnp.float32


def test_spectral_norm_is_differentiable():
    """∂‖K_dw‖/∂θ agrees with a finite difference, under jit: a norm can be a penalty."""
    θ, direction = normal(3, 2, C), normal(3, 2, C, seed=1)
    norm = jax.jit(lambda θ: analysis.spectral_norm(partial(lowcost.depthwise, θ), (4, 5), C))
    difference = (norm(θ + 1e-6 * direction) - norm(θ - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(np.vdot(jax.grad(norm)(θ), direction), difference, rtol=1e-6)


@pytest.mark.parametrize("h", [0.0, 0.3, 100.0])
def test_implicit_step_never_amplifies(h):
    """ρ((I + hKᵀK)⁻¹) ≤ 1 and, the inverse being symmetric, its norm too, Eq. (11)."""
    resolvent = jax.jit(partial(lowcost.circulant_resolvent, normal(3, 2, C), h=h, method="fft"))
    assert analysis.spectral_radius(resolvent, (4, 5), C) <= 1 + 1e-12
    assert analysis.spectral_norm(resolvent, (4, 5), C) <= 1 + 1e-12


def test_max_stable_step_is_where_the_explicit_step_turns_unstable():
    """ρ(I - hKᵀK) is 1 at h = 2 / max|λ|² and more beyond, Eq. (9)."""
    θ, grid = normal(3, 2, C), (4, 5)

    def step(h):
        return jax.jit(lambda y: lowcost.forward_euler(partial(lowcost.depthwise_diffusion, θ, method="fft"), y, h))

    limit = float(analysis.max_stable_step(symbol(θ, grid)))
    np.testing.assert_allclose(analysis.spectral_radius(step(limit), grid, C), 1, rtol=1e-12)
    assert analysis.spectral_radius(step(1.01 * limit), grid, C) > 1.01
    assert analysis.max_stable_step(np.zeros((4, C), complex)) == jnp.inf


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_amplification_is_the_spectrum_of_the_step(integrator):
    """R(h|λ|²) are the eigenvalues of a step without reaction, Eqs. (9), (11)."""
    θ, grid = normal(3, 2, C), (4, 5)
    λ = symbol(θ, grid)
    still = jnp.zeros_like
    step = {
        "forward_euler": lambda y: lowcost.forward_euler(partial(lowcost.depthwise_diffusion, θ), y, H),
        "imex_euler": lambda y: lowcost.imex_euler(partial(lowcost.depthwise_resolvent, θ), still, y, H),
    }.get(integrator, lambda y: lowcost.spectral_step(integrator, lowcost.squared_modulus(λ), still, y, H))
    expected = np.asarray(analysis.amplification(integrator, λ, H))[..., None] * np.eye(C)
    np.testing.assert_allclose(analysis.transfer_matrix(jax.jit(step), grid, C), expected, atol=1e-12)
    np.testing.assert_array_equal(
        analysis.amplification(INTEGRATORS[integrator], λ, H), analysis.amplification(integrator, λ, H)
    )


@over_sizes
def test_green_function_is_the_response_to_an_impulse(window, grid):
    """(I + hKᵀK) g = δ at index n // 2, and g is the resolvent of δ, Eq. (11)."""
    θ, green = normal(*window, C), green_function(normal(*window, C), grid, H)
    impulse = np.zeros((*grid, C))
    impulse[tuple(n // 2 for n in grid)] = 1
    np.testing.assert_allclose(green, jax.jit(lowcost.depthwise_resolvent)(θ, impulse, H), atol=1e-12)
    np.testing.assert_allclose(green - H * jax.jit(lowcost.depthwise_diffusion)(θ, green), impulse, atol=1e-12)


@over_sizes
def test_green_function_is_the_stencil_of_the_resolvent(window, grid):
    """g is even, so K_dw with the stencil g is the implicit step, Eqs. (5), (11)."""
    θ, y, axes = normal(*window, C), normal(*grid, C, seed=1), range(len(grid))
    green = green_function(θ, grid, H)
    mirrored = np.roll(np.flip(green, axes), [1 - n % 2 for n in grid], axes)
    np.testing.assert_allclose(mirrored, green, atol=1e-12)
    convolved, solved = jax.jit(lowcost.depthwise)(green, y), jax.jit(lowcost.depthwise_resolvent)(θ, y, H)
    np.testing.assert_allclose(convolved, solved, atol=1e-12)


@pytest.mark.parametrize("grid", [(7,), (4, 5), (3, 4, 6)], ids=str)
def test_green_tail_is_the_mass_outside_the_boxes(grid):
    """t_r is ‖g‖₁ minus the mass inside |x|_∞ ≤ r, down to zero at r = max(n) // 2."""
    green, axes = np.abs(np.asarray(normal(*grid, C))), tuple(range(len(grid)))
    tail = green_tail(-green)
    assert tail.shape == (max(grid) // 2 + 1, C)
    for r, t in enumerate(np.asarray(tail)):
        box = tuple(slice(max(n // 2 - r, 0), n // 2 + r + 1) for n in grid)
        np.testing.assert_allclose(t, green.sum(axes) - green[box].sum(axes), atol=1e-12)
    assert np.all(tail[-1] == 0)


@settings(deadline=None, max_examples=15)
@given(h=st.floats(0, 100), tolerance=st.floats(0, 1), seed=st.integers(0, 99))
def test_support_radius_bounds_what_is_cut_off(h, tolerance, seed):
    """With g cut off at r, (I + hKᵀK)⁻¹ y changes by at most tolerance · max|y|; at r - 1 the tail is too heavy."""
    grid, θ, y = (9, 8), normal(3, 3, C, seed=seed), normal(9, 8, C, seed=seed + 1)
    green = green_function(θ, grid, h)
    radius, tail = np.asarray(support_radius(green, tolerance)), np.asarray(green_tail(green))
    x, z = np.indices(grid) - 4
    outside = np.maximum(abs(x), abs(z))[..., None] > radius
    change = jax.jit(lowcost.depthwise)(np.where(outside, green, 0), y)
    assert np.max(np.abs(change)) <= (tolerance + 1e-12) * np.max(np.abs(y))
    assert all(r == 0 or tail[r - 1, c] > tolerance for c, r in enumerate(radius))


def test_support_radius_grows_with_the_time_step():
    """The longer the implicit step, the farther a pixel reaches, Section 3.2.2."""
    laplacian = np.array([[1.0], [-2.0], [1.0]])
    radii = [int(support_radius(green_function(laplacian, (64,), h), 1e-3)[0]) for h in (0.0, 0.1, 1.0, 10.0)]
    assert radii[0] == 0
    assert all(a < b for a, b in itertools.pairwise(radii))


def test_the_radius_has_a_derivative_where_it_is_0():
    """A stencil with a positive mean damps the mean most."""
    assert analysis.green_radius(jnp.ones((3, 1)), (16,), 1.0) == 0
    assert not jax.grad(lambda stencil: analysis.green_radius(stencil, (16,), 1.0).sum())(jnp.ones((3, 1))).any()


def _errors():
    θ = np.ones((3, 3, C))
    wide = partial(lowcost.pointwise, jnp.ones((C, C + 1)))
    walled = jax.jit(partial(lowcost.depthwise, θ, boundary="zeros"))
    return {
        "operator must have as many channels out as in": lambda: analysis.spectrum(wide, (4, 5), C),
        "operator must be linear and commute with shifts": lambda: analysis.transfer_matrix(walled, (4, 5), C),
        "impulse responses that differ from K y": lambda: analysis.spectrum(lambda y: y + 1, (4, 5), C),
        r"operator must keep the grid \[4, 5\]": lambda: analysis.singular_values(lambda y: y[:2], (4, 5), C),
        "got NaN or infinity": lambda: analysis.spectrum(partial(lowcost.depthwise, np.nan * θ), (4, 5), C),
        "shape must have at most 16384 entries": lambda: analysis.operator_matrix(jnp.sin, (128, 128, 2)),
        "integrator must be one of 'forward_euler', 'imex_euler'": lambda: analysis.amplification("rk4", θ, 1.0),
        "h must be a finite time step": lambda: analysis.green_function(jnp.asarray(θ), (4, 4), -1.0),
        "tolerance must be an ℓ¹ mass ≥ 0, got -0.1": lambda: analysis.support_radius(jnp.asarray(θ), -0.1),
        "tolerance must be an ℓ¹ mass ≥ 0, got nan": lambda: analysis.support_radius(jnp.asarray(θ), np.nan),
    }


@pytest.mark.parametrize("message", _errors())
def test_errors_say_what_is_wrong(message):
    """Each error names what is expected and what was passed."""
    with pytest.raises(ValueError, match=message):
        _errors()[message]()
