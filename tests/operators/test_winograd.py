"""Winograd's minimal filtering computes K y, and on a CPU serves the coupled stencils that gain from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BOUNDARIES, QUICK, assert_close
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

import lowcost
from lowcost.operators import sliding, winograd

GRIDS = [(6,), (4, 7), (3, 4, 5)]
pytestmark = pytest.mark.usefixtures("x64")


def sums(stencil, padded):
    """Σ_j θ_j y_{i+j}, point by point."""
    grid = np.subtract(padded.shape[:-1], 2)
    pieces = {j: padded[tuple(map(slice, j, j + grid))] for j in np.ndindex(stencil.shape[:-2])}
    return sum(piece @ stencil[j] for j, piece in pieces.items())


def convolution(stencil, y, boundary):
    """K y by XLA's convolution."""
    mode = {"periodic": "wrap", "zeros": "constant"}.get(boundary, boundary)
    return sliding.convolve_by_xla(stencil, jnp.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)], mode))


@pytest.fixture
def everywhere(monkeypatch):
    """Lets few tiles and channels gain too, and counts the uses; programs of other tests are forgotten."""
    used = []
    monkeypatch.setattr(winograd, "TILES_MIN", 1)
    monkeypatch.setattr(winograd, "CHANNELS_MIN", 1)
    apply = winograd.apply
    monkeypatch.setattr(winograd, "apply", lambda *arrays: used.append("apply") or apply(*arrays))
    jax.clear_caches()
    yield used
    jax.clear_caches()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_sums_and_their_gradient(grid):
    """The sums are those of each point, and the gradient is the derivative of ⟨z, K(θ) y⟩ by θ; sides may be odd."""
    rng = np.random.default_rng(0)
    stencil, other = rng.standard_normal((2, *[3] * len(grid), 3, 2))
    padded, z = rng.standard_normal((*np.add(grid, 2), 3)), rng.standard_normal((*grid, 2))
    assert_close(winograd.apply(winograd.transformed(stencil), padded), sums(stencil, padded))
    gradient = winograd.transformed_adjoint(winograd.gradient(padded, z))
    assert_close(jnp.vdot(gradient, other), np.vdot(z, sums(other, padded)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("channels", "short"), [((32, 34), True), ((144, 32), False)])
def test_a_cpu_computes_coupled_operators_so(channels, short, boundary, monkeypatch):
    """K y, Kᵀ z and the gradients equal those by XLA's convolution, with patches that are short and long."""
    rng = np.random.default_rng(0)
    stencil, y = rng.standard_normal((3, 3, *channels)), rng.standard_normal((2, 8, 9, channels[0]))
    z, used = rng.standard_normal((2, 8, 9, channels[1])), []
    for name in ("apply", "gradient"):
        function = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *x, name=name, f=function: used.append(name) or f(*x))

    @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def all_three(operator, stencil, y, z):
        value, pullback = jax.vjp(operator, stencil, y)
        return value, *pullback(z)

    slide = partial(lowcost.fully_coupled, boundary=boundary, method="direct")
    expected = all_three(partial(convolution, boundary=boundary), stencil, y, z)
    for got, want in zip(all_three(slide, stencil, y, z), expected, strict=True):
        assert_close(got, want)
    assert {*used} == ({"apply"} if short else {"apply", "gradient"})


def test_derivatives_of_second_order_and_maps(everywhere):
    """Forward and reverse mode to second order, and `jax.vmap` over the stencil or the images."""
    rng = np.random.default_rng(0)
    stencils, y = rng.standard_normal((2, 3, 3, 2, 3)), rng.standard_normal((2, 1, 4, 4, 2))
    operator = partial(lowcost.fully_coupled, method="direct")
    check_grads(operator, (stencils[0], y[0]), order=2, atol=1e-6, rtol=1e-6)
    for axes in ((0, None), (None, 0), (0, 0)):
        arguments = [x if axis == 0 else x[0] for x, axis in zip((stencils, y), axes, strict=True)]
        got = jax.vmap(operator, axes)(*arguments)
        for i in range(2):
            one = [x[i] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True)]
            assert_close(got[i], convolution(*one, "periodic"))
    assert everywhere


def test_in_a_shard_map():
    """On a mesh each device filters its own images, and the gradient of long patches is that of all images."""
    rng = np.random.default_rng(0)
    stencil, y = rng.standard_normal((3, 3, 144, 32)), rng.standard_normal((4, 8, 8, 144))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def gradient(stencil, y):
        return jax.grad(lambda *x: jnp.sum(lowcost.fully_coupled(*x, method="direct") ** 2), (0, 1))(stencil, y)

    expected = jax.jit(gradient)(stencil, y)
    specs = {
        "in_specs": (PartitionSpec(), PartitionSpec("data")),
        "out_specs": (PartitionSpec(), PartitionSpec("data")),
    }
    with jax.set_mesh(mesh):
        sharded = jax.jit(gradient)(stencil, y)
    for got in (sharded, jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(stencil, y)):
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs)


def test_what_gains():
    """Three points per axis, several tiles, enough channels of both kinds, and images that fit into memory."""
    assert winograd.is_faster((3, 3, 32, 32), (8, 8))
    assert winograd.is_faster((3, 64, 64), (33,))
    others = [((3, 3, 32, 32), (4, 4)), ((3, 3, 3, 32), (8, 8)), ((3, 5, 32, 32), (8, 8))]
    others += [((3, 3, 3, 64, 64), (128, 128, 128))]
    assert not any(winograd.is_faster(*other) for other in others)
