"""Programs for GPUs compute the same functions as on CPUs, and pass over the features less often than JAX's own forms.

Their branches run here on the CPU; the FFT, which only a GPU has in this form, is read in the lowered program.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BOUNDARIES, QUICK, assert_close

import lowcost
from lowcost import real_fft
from lowcost.operators.boundary import extend, extend_at_once

GRIDS = [(7,), (6, 8), (5, 4, 6)]


def gradients(operator, boundary, stencil, y, z):
    """Returns the value, and the gradients in both arguments."""
    value, pullback = jax.vjp(partial(operator, boundary=boundary, method="direct"), stencil, y)
    return value, *pullback(z)


def mixed(function, matrix, stencil, y, **how):
    """K_lm or its adjoint, with a matrix that depends on the stencil too."""
    return function(stencil, stencil.sum() * matrix, y, **how)


def computed(*arguments):
    """Returns the gradients; every call traces and compiles them anew."""
    operator, boundary, *arrays = arguments
    return jax.jit(lambda *arrays: gradients(operator, boundary, *arrays), compiler_options=QUICK)(*arrays)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    ["depthwise", "depthwise_adjoint", "depthwise_diffusion", "fully_coupled", "linear_mix", "linear_mix_adjoint"],
)
@pytest.mark.parametrize("window", [(3,), (2, 3), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES[:2])
def test_stencils(name, window, boundary, monkeypatch):
    """K y, Kᵀ z, -KᵀK y and their gradients are those of the CPU's branch."""
    rng = np.random.default_rng(0)
    channels = (2, 2) if name == "fully_coupled" else (2,)
    stencil, matrix = rng.standard_normal((*window, *channels)), rng.standard_normal((2, 2))
    y, z = (rng.standard_normal((2, *GRIDS[len(window) - 1], 2)) for _ in range(2))
    operator = getattr(lowcost, name)
    if name.startswith("linear_mix"):
        operator = partial(mixed, operator, matrix)
    arguments, branches = (operator, boundary, stencil, y, z), []
    expected = computed(*arguments)

    def for_gpus(*arrays, default, **others):
        branches.append(others.get("cuda", default))
        return branches[-1](*arrays)

    monkeypatch.setattr(jax.lax, "platform_dependent", for_gpus)
    for got, want in zip(computed(*arguments), expected, strict=True):
        assert_close(got, want)
    assert branches


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_extension_at_once(grid, boundary):
    """A grid extended in one sum equals `numpy.pad` axis by axis, up to as many points as the grid has."""
    y = jax.random.normal(jax.random.key(0), (2, *grid, 3))
    most = min(grid) - (boundary == "reflect")
    for beyond in ([(1, 2)] * len(grid), [(0, 1)] * len(grid), [(most, 0)] * len(grid)):
        np.testing.assert_array_equal(extend_at_once(y, beyond, boundary), extend(y, beyond, boundary))


def program(function, *arrays):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def test_a_diffusion_is_one_convolution():
    """-KᵀK y and its two gradients are one convolution each, with the stencil of KᵀK, if it fits into the grid."""
    stencil = jnp.ones((3, 3, 2))
    for n, reaches in ((8, [2, 2, 2]), (4, [1] * 6)):
        y = jnp.ones((2, n, n, 2))
        text = program(partial(gradients, lowcost.depthwise_diffusion, "periodic"), stencil, y, y)
        extended = re.findall(r"stablehlo.convolution.* : \(tensor<2x(\d+)x\d+x2xf32>", text)
        assert [(int(points) - n) // 2 for points in extended] == reaches


@pytest.mark.parametrize("name", ["depthwise_resolvent", "circulant_resolvent"])
def test_all_axes_are_transformed_at_once(name):
    """Value and gradients of a filter transform all axes of the features at once, without transposes between."""
    y = jnp.ones((2, 8, 6, 4))

    def gradients(stencil, y):
        value, pullback = jax.vjp(lambda *both: getattr(lowcost, name)(*both, 1.0, method="fft"), stencil, y)
        return value, *pullback(y)

    text = program(gradients, jnp.ones((3, 3, 4)), y)
    lengths = re.findall(r"stablehlo.fft .*length = \[(.*?)\]", text)
    assert len(lengths) >= 3  # equal forward transforms are one function
    assert set(lengths) == {"8, 6, 4" if name.startswith("circulant") else "8, 6"}


class AsOnGpus:
    """Inverts as a GPU's library: of a pair k and -k that both belong to the spectrum it reads the first alone."""

    def __init__(self, inverse):
        self.inverse = inverse

    def bind(self, spectrum, *, grid):
        first = spectrum.ndim - len(grid)
        k = np.indices(spectrum.shape[first:])
        opposite = [-k[axis] % n for axis, n in enumerate(grid)]
        place, mirrored = (np.ravel_multi_index(tuple(x), grid) for x in (k, opposite))
        inside = np.where(opposite[-1] < spectrum.shape[-1], mirrored, place)
        source = [np.where(inside < place, a, b) for a, b in zip(opposite, k, strict=True)]
        read = spectrum[..., *source]
        return self.inverse.bind(jnp.where(inside < place, jnp.conj(read), read), grid=grid)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["depthwise", "circulant", "circulant_resolvent", "fully_coupled"])
@pytest.mark.parametrize("grid", [(6, 4), (3, 5)], ids=str)
def test_spectra_have_the_symmetry_on_which_gpus_rely(name, grid, monkeypatch):
    """Value, gradients and a derivative of these do not change if half of the redundant entries are never read."""
    rng = np.random.default_rng(0)
    stencil = rng.standard_normal((3, 2, *((4, 4) if name == "fully_coupled" else (4,))))
    y, z = (rng.standard_normal((2, *grid, 4)) for _ in range(2))
    more = (1.0,) if name.endswith("resolvent") else ()

    def run():
        def first(stencil, y):
            value, pullback = jax.vjp(lambda *both: getattr(lowcost, name)(*both, *more, method="fft"), stencil, y)
            return value, *pullback(z)

        return jax.jit(lambda: jax.jvp(first, (stencil, y), (stencil[::-1], z)), compiler_options=QUICK)()

    expected, exact = run(), real_fft._inverse
    monkeypatch.setattr(real_fft, "_inverse", AsOnGpus(exact))
    jax.tree.map(assert_close, run(), expected)
    without_symmetry = jnp.exp(1j * rng.standard_normal((*grid[:-1], grid[-1] // 2 + 1)))
    results = [inverse.bind(without_symmetry, grid=grid) for inverse in (exact, real_fft._inverse)]
    assert jnp.abs(results[1] - results[0]).max() > 0.01


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("grid", [(5,), (6,), (4, 5), (3, 4), (3, 2, 4), (2, 3, 2, 4)], ids=str)
def test_real_fft(grid):
    """Transform and inverse are NumPy's, also of four axes, and the derivatives of a filter are JAX's own."""
    rng = np.random.default_rng(0)
    y, z = (rng.standard_normal((2, *grid)) for _ in range(2))
    axes = tuple(range(1, len(grid) + 1))
    spectrum = real_fft.real_fft(y, len(grid))
    np.testing.assert_allclose(spectrum, np.fft.rfftn(y, axes=axes), atol=1e-12)
    assert_close(real_fft.inverse_real_fft(spectrum, grid), y)

    def filtered(transform, inverse, y):
        half = transform(y)
        return inverse(half * (1 + jnp.abs(half) ** 2))

    own = partial(
        filtered, lambda y: real_fft.real_fft(y, len(grid)), lambda half: real_fft.inverse_real_fft(half, grid)
    )
    jax_own = partial(filtered, lambda y: jnp.fft.rfftn(y, axes=axes), lambda half: jnp.fft.irfftn(half, grid, axes))
    assert_close(jax.vjp(own, y)[1](z)[0], jax.vjp(jax_own, y)[1](z)[0])
    assert_close(jax.jvp(own, (y,), (z,))[1], jax.jvp(jax_own, (y,), (z,))[1])
