"""Operators are plain JAX functions: every transformation applies, and every derivative is right, by every method."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASE, CASES, MIRRORED, QUICK, H, assert_close, over_all, over_every
from jax.flatten_util import ravel_pytree

import lowcost
from lowcost import real_dft, spectral

pytestmark = pytest.mark.usefixtures("x64")

WINDOW, GRID, BATCH = (2, 2), (3, 4), (2,)
WAYS = [(case, way) for case in [*CASES, *MIRRORED] for way in case.ways]
over_all_ways = pytest.mark.parametrize(("case", "way"), WAYS, ids=str)
# Operators that depend on the square of the stencil, with their factor of −KᵀKy.
QUADRATIC = {"depthwise_diffusion": 1, "circulant_diffusion": 1, "depthwise_resolvent": H, "circulant_resolvent": H}
compiled = partial(jax.jit, compiler_options=QUICK)


def energy(case, way):
    """Returns half the sum of squares of the result, as a function of weights and features."""
    return lambda weights, y: (case.function(*weights, y, **way) ** 2).sum() / 2


@over_all_ways
def test_transformations(case, way):
    """jit, eval_shape, vmap over examples or weights, and checkpoint do not change the result."""
    weights, y = case.draw((2,), (3,), BATCH)
    f, loss = partial(case.function, **way), energy(case, way)

    @compiled
    def run(weights, y):
        pairs = [jnp.stack([w, 2 * w]) for w in weights]
        gradients = [jax.grad(energy)(weights, y) for energy in (loss, jax.checkpoint(loss))]
        return f(*weights, y), jax.vmap(partial(f, *weights))(y), jax.vmap(f)(*pairs, y), gradients

    plain, over_examples, over_weights, gradients = run(weights, y)
    for result in (plain, over_examples):
        assert_close(result, f(*weights, y))
    assert_close(over_weights, [plain[0], f(*[2 * w for w in weights], y[1])])
    chex.assert_trees_all_close(*gradients, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(f, *weights, y), plain)


@over_every
def test_derivatives(case):
    """First and second derivatives agree forward, in reverse and by differences, by every method."""
    point, unravel = ravel_pytree(case.draw(WINDOW, GRID, BATCH))
    direction = np.random.default_rng(1).normal(size=point.shape)

    def derivatives(way, point):
        def loss(p):
            return energy(case, way)(*unravel(p))

        value, slope = jax.jvp(loss, (point,), (direction,))
        gradient, product = jax.jvp(jax.grad(loss), (point,), (direction,))
        return value, slope, gradient, product, jax.grad(lambda p: jax.grad(loss)(p) @ direction)(point)

    run = compiled(lambda point: [derivatives(way, point) for way in case.ways])
    step = 1e-5
    results = [run(point + shift * direction) for shift in (0, step, -step)]
    for centre, after, before in zip(*results, strict=True):
        _, slope, gradient, product, reverse_over_reverse = centre
        assert_close(gradient @ direction, slope)
        assert_close(reverse_over_reverse, product, 1e-11)
        assert_close((after[0] - before[0]) / (2 * step), slope, 1e-6)
        assert_close((after[2] - before[2]) / (2 * step), product, 1e-6)
        chex.assert_trees_all_close(centre, results[0][0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", QUADRATIC)
def test_second_derivative_at_the_zero_stencil(name):
    """d²/dt² at t = 0 of −(tK)ᵀ(tK)y is −2KᵀKy, and of (I + h(tK)ᵀ(tK))⁻¹y it is −2hKᵀKy."""
    case = CASE[name]
    (stencil,), y = case.draw(WINDOW, GRID, BATCH)
    expected = 2 * QUADRATIC[name] * CASE[name.replace("resolvent", "diffusion")].function(stencil, y)

    def second(f):
        return jax.jvp(lambda t: jax.jvp(f, (t,), (stencil,))[1], (0 * stencil,), (stencil,))[1]

    def product(f):
        return jax.jvp(jax.grad(lambda t: jnp.vdot(f(t), y)), (0 * stencil,), (stencil,))[1]

    functions = [lambda t, way=way: case.function(t, y, **way) for way in case.ways]
    for forward, reverse in compiled(lambda: [(second(f), product(f)) for f in functions])():
        assert_close(forward, expected)
        assert_close(np.vdot(stencil, reverse), np.vdot(y, expected))


@over_every
@pytest.mark.parametrize("weight_dtype", [jnp.bfloat16, jnp.float32])
def test_bfloat16(case, weight_dtype):
    """bfloat16 features are computed in float32: the result is one rounding away from the exact one."""
    weights, y = case.draw(WINDOW, GRID, BATCH)
    weights, y = [jnp.asarray(w, weight_dtype) for w in weights], jnp.asarray(y, jnp.bfloat16)
    exact = case.expected(case.ways, [np.asarray(w, np.float64) for w in weights], np.asarray(y, np.float64), GRID)
    for result, expected in zip(case.every(case.ways, weights, y), exact, strict=True):
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=2**-8, atol=1e-4)


@over_all
def test_traced_once(case):
    """Other weights, features or steps of the same shape and type do not compile again."""
    chex.clear_trace_counter()
    weights, y = case.draw(WINDOW, GRID, BATCH)
    resolvent = case.form == "_resolvent"
    f = jax.jit(chex.assert_max_traces(case.function.func if resolvent else case.function, n=1))
    for factor in (1.0, 2.0):
        f(*weights, factor * y, *([factor] if resolvent else []))


@over_all_ways
def test_no_loop_over_examples_or_channels(case, way):
    """The program is as long for 11 channels as for 9, and for 16 images as for 2."""

    def length(batch, channels):
        weights, y = case.draw(WINDOW, GRID, (batch,), channels)
        loss = jax.grad(energy(case, way), (0, 1))
        return [str(jax.make_jaxpr(f)(weights, y)).count(" = ") for f in (energy(case, way), loss)]

    # With 4 channels, as many as an axis has points, parts of the program are equal, and equal parts are printed once.
    assert length(2, 9) == length(2, 11) == length(16, 9)


@over_all_ways
def test_lowers_for_every_platform(case, way):
    """One program with its gradient is lowered for CPU, GPU and TPU, where users forbid implicit promotion too."""
    point = case.draw(WINDOW, GRID, BATCH, dtype=np.float32)
    gradient = jax.jit(jax.grad(energy(case, way), (0, 1)))
    with jax.numpy_dtype_promotion("strict"):
        exported = jax.export.export(gradient, platforms=["cpu", "cuda", "tpu"])(*point)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("operator", [lowcost.depthwise, lowcost.fully_coupled])
def test_what_is_called_twice_is_compiled_once(operator):
    """The loop over images is cached outside of `jax.jit` too, as in a notebook."""
    stencil = jnp.ones((3, 3, 2) if operator is lowcost.depthwise else (3, 3, 2, 2))
    y = jnp.ones((2, 6, 5, 2))
    operator(stencil, y, method="matmul")
    compiled = spectral._filter_images._cache_size()
    operator(stencil + 1, y + 1, method="matmul")
    assert spectral._filter_images._cache_size() == compiled


@pytest.mark.parametrize("grid", [(8,), (5, 4), (2, 3, 4)])
@pytest.mark.parametrize("inverse", [False, True])
def test_all_axes_at_once(grid, inverse):
    """One product along all axes, or contractions as on accelerators, equal the products axis by axis."""
    y = jax.random.normal(jax.random.key(0), (*grid, 3), jnp.float64)
    bases = [basis.T if inverse else basis for basis in map(real_dft.real_basis, grid)]
    for way in (real_dft._at_once, real_dft._contracted):
        np.testing.assert_allclose(way(y, bases), real_dft._by_axis(y, bases), atol=1e-12)


def test_the_platform_chooses_how_many_axes():
    """Accelerators take one product in each direction on small grids; CPUs, and larger grids, take one per axis."""

    def products(n, platform):
        y, λ = jnp.ones((n, n, 2)), jnp.ones((n, n, 2))
        program = jax.jit(lambda λ, y: lowcost.apply_symbol(λ, y, method="matmul")).trace(λ, y)
        return program.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")

    assert [products(8, platform) for platform in ("cpu", "tpu", "cuda")] == [4, 2, 2]
    assert [products(16, platform) for platform in ("cpu", "tpu", "cuda")] == [4, 2, 4]
    assert [products(17, platform) for platform in ("cpu", "tpu", "cuda")] == [4, 4, 4]


@pytest.mark.parametrize("name", ["fully_coupled", "circulant"])
def test_the_precision_is_that_of_the_caller(name):
    """The setting holds although the program is lowered after its block, for values and gradients."""
    (stencil,), y = CASE[name].draw((3, 3), (5, 4), (2,), dtype=np.float32)

    def loss(stencil, y):
        return jnp.sum(getattr(lowcost, name)(stencil, y, method="direct") ** 2)

    def gradient(stencil, y):
        with jax.default_matmul_precision("highest"):
            return jax.grad(loss, (0, 1))(stencil, y)

    text = jax.jit(gradient).trace(stencil, y).lower(lowering_platforms=("tpu",)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 3
    assert all(line.count("precision HIGHEST") == 2 for line in convolutions)


@pytest.mark.parametrize("largest", [0, 2**16])
@pytest.mark.parametrize("grid", [(5,), (6, 5), (4, 3, 5)])
def test_symbols_for_matrix_products(grid, largest, monkeypatch):
    """They equal the symbol at k and -k, by one product for all axes and axis by axis."""
    monkeypatch.setattr(spectral, "LARGEST_PRODUCT", largest)
    stencil = jax.random.normal(jax.random.key(0), (*[3] * len(grid), 4), jnp.float64)
    want = real_dft.both_signs(spectral.symbol(stencil, grid))
    np.testing.assert_allclose(spectral.symbol_for("matmul", stencil, grid), want, atol=1e-12)
    circulant = real_dft.both_signs(spectral.circulant_symbol(stencil, grid)[..., None])[..., 0]
    got = spectral.symbol_for("matmul", stencil, grid, circulant=True)
    np.testing.assert_allclose(got, circulant, atol=1e-12)
