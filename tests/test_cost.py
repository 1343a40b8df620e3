"""Compares the formulas of Table 1 with the operators' own shapes and XLA's own count."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import lowcost
from lowcost import cost
from lowcost.operators import winograd

SIZES = [((32,), (3,)), ((16, 16), (3, 3)), ((12, 10), (5, 5)), ((8, 6, 4), (3, 3, 3))]
over_sizes = pytest.mark.parametrize(("grid", "window"), SIZES, ids=str)
C, C_OUT = 16, 8


def flops(function, *arrays):
    """Returns the operations that XLA counts in the compiled function, two per multiply-add."""
    return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]


def filter_flops(symbol, y, method):
    """Returns the operations that XLA counts in a filter whose symbol is known."""
    symbol = jax.device_get(symbol)
    return flops(lambda y: lowcost.apply_symbol(jnp.asarray(symbol), y, method=method), y)


@over_sizes
def test_coupled_layers_are_what_xla_counts(grid, window):
    """K and M, Eqs. (4), (6), cost exactly what XLA counts."""
    y, K, M = jnp.ones((*grid, C)), jnp.ones((*window, C, C_OUT)), jnp.ones((C, C_OUT))
    assert cost.fully_coupled(grid, window, C, C_OUT) == (
        K.size,
        flops(partial(lowcost.fully_coupled, method="direct"), K, y) / 2,
    )
    assert cost.pointwise(grid, C, C_OUT) == (M.size, flops(lowcost.pointwise, M, y) / 2)


@over_sizes
def test_direct_depthwise_is_what_xla_counts(grid, window):
    """K_dw, Eq. (5), costs what XLA counts plus one addition, because the first of m² products needs none."""
    n, y, θ = math.prod(grid), jnp.ones((*grid, C)), jnp.ones((*window, C))
    layer = cost.depthwise(grid, window, C)
    assert layer.weights == θ.size
    assert 2 * layer.multiply_adds - n * C == flops(partial(lowcost.depthwise, method="direct"), θ, y)


@over_sizes
def test_direct_circulant_is_what_xla_counts(grid, window, monkeypatch):
    """K_circ written out costs what K does, Eq. (12), up to 2 % and the few operations that find the c² indices.

    Winograd's filtering, which a CPU would use at one of the sizes, needs fewer.
    """
    monkeypatch.setattr(winograd, "is_faster", lambda *sizes: False)
    y, θ = jnp.ones((*grid, C)), jnp.ones((*window, C))
    layer = cost.circulant(grid, window, C, method="direct")
    assert layer.weights == θ.size
    counted = flops(partial(lowcost.circulant, method="direct"), θ, y)
    assert 2 * layer.multiply_adds == pytest.approx(counted, rel=0.02, abs=20 * C**2)


@over_sizes
def test_filters_by_matrix_product_are_what_xla_counts(grid, window):
    """F⁻¹(λ ⊙ F y) with the DFT as a matrix product agrees to 2 % for complex λ and real |λ|², Eqs. (10), (11)."""
    y, θ = jnp.ones((*grid, C)), jnp.ones((*window, C))
    λ = lowcost.symbol(θ, grid)
    layer = cost.depthwise(grid, window, C, method="matmul")
    assert 2 * layer.multiply_adds == pytest.approx(filter_flops(λ, y, "matmul"), rel=0.02)
    diffusion = cost.depthwise_diffusion(grid, window, C, method="matmul").multiply_adds
    assert 2 * diffusion == pytest.approx(filter_flops(lowcost.squared_modulus(λ), y, "matmul"), rel=0.02)


def test_circulant_filter_by_matrix_product_is_what_xla_counts():
    """F₃⁻¹(λ ⊙ F₃ y), Eq. (12), is a filter with the channels as one more axis, and agrees to 2 %."""
    grid, window = (16, 16), (3, 3)
    λ = lowcost.circulant_symbol(jnp.ones((*window, C)), grid)[..., None]
    layer = cost.circulant(grid, window, C, method="matmul")
    assert 2 * layer.multiply_adds == pytest.approx(filter_flops(λ, jnp.ones((*grid, C, 1)), "matmul"), rel=0.02)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_fft_grows_as_xla_counts(n):
    """XLA counts 8 n log₂ n for a transform of one axis, real or not; `cost` counts (5/2) n log₂ n for a real one."""
    counted = flops(jnp.fft.rfft, jnp.ones(n))
    products = 2 * n
    transforms = cost.depthwise((n,), (3,), 1, method="fft").multiply_adds - products
    assert counted == 8 * n * math.log2(n)
    assert transforms == counted / 8 * 2.5


def test_orders_of_table_1():
    """The cost by FFT ignores the stencil, grows with n log n and, except for M, linearly with the channels."""
    small, large = (cost.depthwise((64, 64), (m, m), 16, method="fft") for m in (3, 7))
    assert small.multiply_adds == large.multiply_adds
    assert cost.depthwise((64, 64), (3, 3), 32, method="fft").multiply_adds == 2 * small.multiply_adds
    n, c = 64 * 64, 256
    for layer in (cost.explicit_rd, cost.implicit_rd, cost.circulant_rd):
        weights, multiply_adds = layer((64, 64), (3, 3), c)
        assert weights == 9 * c + c**2
        assert n * c**2 < multiply_adds < n * c**2 + n * c * 3 * math.log2(n * c)
    assert cost.explicit_rd((64, 64), (3, 3), c).multiply_adds == n * (2 * 9 * c + c**2)


def test_linear_mix_is_the_sum_of_its_parts():
    """K_lm = K_dw + M, Eq. (7), and 1x1 coupled is M, Eq. (6)."""
    grid = (8, 6)
    parts = [cost.depthwise(grid, (3, 3), 4), cost.pointwise(grid, 4, 4)]
    assert cost.linear_mix(grid, (3, 3), 4) == cost.total(parts)
    assert cost.fully_coupled(grid, (1, 1), 4, 5) == cost.pointwise(grid, 4, 5)
    assert cost.total([]) == (0, 0)


ERRORS = {
    "window must fit the grid": lambda: cost.depthwise((4, 2), (3, 3), 1),
    "must be at least 1": lambda: cost.pointwise((4, 4), 0, 1),
    "method must be one of 'fft', 'matmul', 'direct'": lambda: cost.circulant((4, 4), (3, 3), 2, method="auto"),
    "method must be one of 'fft', 'matmul' here": lambda: cost.implicit_rd((4, 4), (3, 3), 2, method="direct"),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_is_wrong(message):
    """Each error names the argument, what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()
