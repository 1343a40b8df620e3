"""Compares time steps of the reaction-diffusion equation, Eqs. (8), (9), (11), with dense and exact solutions."""

from functools import partial

import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from cases import assert_close

import lowcost

pytestmark = pytest.mark.usefixtures("x64")

GRID, H = (3, 4), 0.3
ORDERS = {"forward_euler": 1, "imex_euler": 1, "crank_nicolson": 2, "exponential_euler": np.inf}  # on pure diffusion


def problem(size=1.0, batch=(2,)):
    """Returns a stencil, its A = KᵀK, a reaction σ(My) with a smooth σ, and features."""
    rng = np.random.default_rng(0)
    stencil, matrix = size * rng.normal(size=(3, 2, 3)), size * rng.normal(size=(3, 3))
    k = matrices.depthwise(stencil, GRID)

    def reaction(y):
        return jnp.tanh(lowcost.pointwise(matrix, y))

    return stencil, k.T @ k, reaction, rng.normal(size=(*batch, *GRID, 3))


def stepper(name, stencil, reaction):
    """Returns the step as a function of (y, h)."""
    if name == "forward_euler":
        diffusion = partial(lowcost.depthwise_diffusion, stencil)
        return partial(lowcost.forward_euler, lowcost.reaction_diffusion(diffusion, reaction))
    if name == "imex_euler":
        return partial(lowcost.imex_euler, partial(lowcost.depthwise_resolvent, stencil), reaction)
    return partial(lowcost.spectral_step, name, lowcost.squared_modulus(lowcost.symbol(stencil, GRID)), reaction)


def dense_step(name, a, source, y):
    """Returns one step of size h by dense matrices, with source = σ(My)."""
    i = np.eye(len(a))
    if name == "forward_euler":  # Eq. (9)
        return matrices.product(i - H * a, y, GRID) + H * source
    if name == "imex_euler":  # Eq. (11)
        return matrices.product(np.linalg.inv(i + H * a), y + H * source, GRID)
    if name == "crank_nicolson":
        right = matrices.product(i - H / 2 * a, y, GRID) + H * source
        return matrices.product(np.linalg.inv(i + H / 2 * a), right, GRID)
    # The exact solution after time h of ẏ = −Ay + r with constant r; here [[−A, I], [0, 0]] acts on (y, r).
    flow = scipy.linalg.expm(H * np.block([[-a, i], [0 * a, 0 * a]]))[: len(a)]
    return matrices.product(flow[:, : len(a)], y, GRID) + matrices.product(flow[:, len(a) :], source, GRID)


@pytest.mark.parametrize("name", ORDERS)
def test_equals_the_dense_step(name):
    """Eq. (8) is solved by Eqs. (9), (11), by Crank-Nicolson and by the exponential of the diffusion."""
    stencil, a, reaction, y = problem()
    step = jax.jit(stepper(name, stencil, reaction))
    assert_close(step(y, H), dense_step(name, a, np.asarray(reaction(y)), y))
    assert jax.eval_shape(step, y.astype(np.float32), H).dtype == np.float32


@pytest.mark.parametrize("name", ORDERS)
def test_integers_are_refused(name):
    """They would be rounded after each step."""
    stencil, _, reaction, y = problem()
    with pytest.raises(TypeError, match="y must be real floating point, got int32"):
        stepper(name, stencil, reaction)(jnp.asarray(y, jnp.int32), H)


def test_circulant_reaction_diffusion():
    """Eqs. (8) and (11) hold with K_circ of Eq. (12) as the diffusion."""
    stencil, _, reaction, y = problem()
    k, source = matrices.circulant(stencil, GRID), np.asarray(reaction(y))
    flow = lowcost.reaction_diffusion(partial(lowcost.circulant_diffusion, stencil), reaction)
    assert_close(flow(y), matrices.product(-k.T @ k, y, GRID) + source)
    implicit = lowcost.imex_euler(partial(lowcost.circulant_resolvent, stencil), reaction, y, H)
    assert_close(implicit, dense_step("imex_euler", k.T @ k, source, y))


@pytest.mark.parametrize("reacting", [True, False])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, reacting):
    """Half the step leaves half the error at time 1; on pure diffusion the error has the integrator's order."""
    stencil, a, reaction, y = problem(size=0.3, batch=())
    reaction = reaction if reacting else jnp.zeros_like

    def flow(_, vector):
        return -a @ vector + matrices.to_vector(np.asarray(reaction(matrices.from_vector(vector, GRID))), GRID)

    exact = scipy.integrate.solve_ivp(flow, (0, 1), matrices.to_vector(y, GRID), "DOP853", rtol=1e-12, atol=1e-13)
    step = stepper(name, stencil, reaction)
    march = jax.jit(lambda steps: jax.lax.fori_loop(0, steps, lambda _, y: step(y, 1 / steps), y))
    errors = [np.abs(march(steps) - matrices.from_vector(exact.y[:, -1], GRID)).max() for steps in (32, 64)]
    order = 1 if reacting else ORDERS[name]
    assert max(errors) < 1e-10 if order == np.inf else abs(np.log2(errors[0] / errors[1]) - order) < 0.1


def test_phi_near_zero():
    """Φ(z) = (1 − e⁻ᶻ)/z and Φ′ are finite and exact for every z, down to Φ(0) = 1 and Φ′(0) = −1/2."""

    @jax.jit
    def phi(z):  # a unit source on one pixel, a channel for each z
        return lowcost.spectral_step("exponential_euler", z[None], jnp.ones_like, jnp.zeros((1, len(z))), 1.0)[0]

    def moment(n, z):  # ∫₀¹ sⁿ exp(−zs) ds is Φ for n = 0 and −Φ′ for n = 1
        return scipy.integrate.quad(lambda s: s**n * np.exp(-z * s), 0, 1, epsabs=1e-13)[0]

    z = np.array([0, 1e-300, 1e-16, 1e-8, 1e-5, 1e-3, 0.1, 1, 30, 1e3])
    value, slope = jax.jvp(phi, (z,), (np.ones_like(z),))
    np.testing.assert_allclose(value, [moment(0, a) for a in z], rtol=1e-9)
    np.testing.assert_allclose(slope, [-moment(1, a) for a in z], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda z: phi(z).sum())(z), slope, rtol=1e-12)
