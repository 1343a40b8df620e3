"""Winograd's minimal filtering computes K y, and on a CPU serves the coupled stencils that gain from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BOUNDARIES, QUICK, assert_close

import lowcost
from lowcost.operators import winograd

GRIDS = [(6,), (4, 8), (2, 4, 6)]
pytestmark = pytest.mark.usefixtures("x64")


def sums(stencil, padded):
    """Σ_j θ_j y_{i+j}, point by point."""
    grid = np.subtract(padded.shape[:-1], 2)
    pieces = {j: padded[tuple(map(slice, j, j + grid))] for j in np.ndindex(stencil.shape[:-2])}
    return sum(piece @ stencil[j] for j, piece in pieces.items())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_sums_and_their_gradient(grid):
    """The sums are those of each point, and the gradient is the derivative of ⟨z, K(θ) y⟩ by θ."""
    rng = np.random.default_rng(0)
    stencil, other = rng.standard_normal((2, *[3] * len(grid), 3, 2))
    padded, z = rng.standard_normal((*np.add(grid, 2), 3)), rng.standard_normal((*grid, 2))
    assert_close(winograd.apply(winograd.transformed(stencil), padded), sums(stencil, padded))
    gradient = winograd.transformed_adjoint(winograd.gradient(padded, z))
    assert_close(jnp.vdot(gradient, other), np.vdot(z, sums(other, padded)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("channels", "short"), [((32, 34), True), ((144, 32), False)])
def test_a_cpu_computes_coupled_operators_so(channels, short, boundary):
    """K y, Kᵀ z and the gradients equal those by XLA's convolution, with patches that are short and long."""
    rng = np.random.default_rng(0)
    stencil, y = rng.standard_normal((3, 3, *channels)), rng.standard_normal((2, 8, 8, channels[0]))
    z = rng.standard_normal((2, 8, 8, channels[1]))
    assert winograd.serves(stencil.shape, (8, 8))
    assert lowcost.operators.sliding._short_patches(stencil.shape) == short

    def convolution(stencil, y):
        mode = {"periodic": "wrap", "zeros": "constant"}.get(boundary, boundary)
        return lowcost.operators.sliding.convolve_by_xla(stencil, jnp.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)], mode))

    @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def all_three(operator, stencil, y, z):
        value, pullback = jax.vjp(operator, stencil, y)
        return value, *pullback(z)

    slide = partial(lowcost.fully_coupled, boundary=boundary, method="direct")
    for got, want in zip(all_three(slide, stencil, y, z), all_three(convolution, stencil, y, z), strict=True):
        assert_close(got, want)


def test_what_gains():
    """Three points per axis, even grids with several tiles, and enough channels of both kinds."""
    assert winograd.serves((3, 3, 32, 32), (8, 8))
    assert winograd.serves((3, 64, 64), (32,))
    others = [((3, 3, 32, 32), (8, 9)), ((3, 3, 32, 32), (4, 4)), ((3, 3, 3, 32), (8, 8)), ((3, 5, 32, 32), (8, 8))]
    assert not any(winograd.serves(*other) for other in others)
