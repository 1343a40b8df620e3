"""Sliding a stencil is a primitive that supports all of JAX's transformations, of every order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BOUNDARIES, QUICK, assert_close
from jax.test_util import check_grads

import lowcost
from lowcost.nn import operations

compiled = partial(jax.jit, compiler_options=QUICK)
pytestmark = pytest.mark.usefixtures("x64")


def mixed(function, weights, y, **how):
    """K_lm or its adjoint, whose weights are here the stencil with 3x2 points and the matrix below it."""
    return function(weights[:6].reshape(3, 2, 2), weights[6:], y, **how)


OPERATORS = {
    "depthwise": (lowcost.depthwise, (3, 2, 2)),
    "depthwise_adjoint": (lowcost.depthwise_adjoint, (3, 2, 2)),
    "fully_coupled": (lowcost.fully_coupled, (3, 2, 2, 3)),
    "fully_coupled_adjoint": (lowcost.fully_coupled_adjoint, (3, 2, 3, 2)),
    "linear_mix": (partial(mixed, lowcost.linear_mix), (8, 2)),
    "linear_mix_adjoint": (partial(mixed, lowcost.linear_mix_adjoint), (8, 2)),
}


def draw(name, seed=0):
    """Returns the operator, its stencil, and features of two images with two channels."""
    function, shape = OPERATORS[name]
    rng = np.random.default_rng(seed)
    return function, rng.standard_normal(shape), rng.standard_normal((2, 4, 5, 2))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_forward_and_reverse_of_second_order(name, boundary):
    function, stencil, y = draw(name)
    check_grads(
        lambda *a: function(*a, boundary=boundary, method="direct"), (stencil, y), order=2, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_under_vmap_over_any_argument(name):
    """`jax.vmap` of gradients, and gradients of `jax.vmap`, over stencils, images or both equal those of a loop."""
    function, stencil, y = draw(name)
    stencils = jnp.stack([stencil, -2 * stencil, stencil**2])
    images = jnp.stack([y, y + 1, y**2])

    def loss(stencil, y):
        return jnp.sum(jnp.tanh(function(stencil, y, method="direct")))

    gradient = jax.grad(loss, (0, 1))
    alone = compiled(gradient)
    for axes in ((0, None), (None, 0), (0, 0)):
        arguments = [many if axis == 0 else many[0] for many, axis in zip((stencils, images), axes, strict=True)]
        one_by_one = [
            alone(*(x[i] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True))) for i in range(3)
        ]
        summed = jax.grad(lambda *a, axes=axes: jax.vmap(loss, axes)(*a).sum(), (0, 1))
        mapped, outside = compiled(lambda *a, axes=axes, f=summed: (jax.vmap(gradient, axes)(*a), f(*a)))(*arguments)
        for k, axis in enumerate(axes):
            expected = np.stack([g[k] for g in one_by_one])
            assert_close(mapped[k], expected, 1e-12)
            assert_close(outside[k], expected if axis == 0 else expected.sum(0), 1e-12)


@pytest.mark.parametrize("method", ["direct", "matmul"])
def test_hessian_vector_products(method):
    """All methods agree on forward over reverse differentiation, as for the curvature of a loss."""
    function, stencil, y = draw("depthwise")

    def product(method):
        gradient = jax.grad(lambda stencil: jnp.sum(jnp.tanh(function(stencil, y, method=method)) ** 2))
        return jax.jvp(gradient, (stencil,), (stencil**2,))[1]

    assert_close(*compiled(lambda: (product(method), product("fft")))(), 1e-11)


def test_no_zero_padded_sums_in_the_backward_pass():
    """The gradient's program has the three primitives, and no padding that JAX would derive from slices."""
    _, stencil, y = draw("depthwise")
    text = str(
        jax.make_jaxpr(jax.grad(lambda s, y: jnp.sum(lowcost.depthwise(s, y, method="direct") ** 2), (0, 1)))(
            stencil, y
        )
    )
    for name in ("slide[", "slide_adjoint[", "slide_gradient["):
        assert name in text
    assert "pad[" not in text


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("adjoint", ["", "_adjoint"])
def test_a_long_stencil(adjoint, boundary):
    """A long stencil is applied in a loop: values, gradients and a map over stencils equal those by FFT."""
    rng = np.random.default_rng(0)
    stencils, y = rng.standard_normal((2, 75, 2)), rng.standard_normal((3, 80, 2))

    def run(method):
        apply = partial(getattr(lowcost, f"depthwise{adjoint}"), boundary=boundary, method=method)
        gradient = jax.grad(lambda *a: jnp.tanh(apply(*a)).sum(), (0, 1))

        @compiled
        def run(stencils, y):
            return apply(stencils[0], y), gradient(stencils[0], y), jax.vmap(apply, (0, None))(stencils, y)

        return run(stencils, y)

    for ours, theirs in zip(*(jax.tree.leaves(run(method)) for method in ("direct", "fft")), strict=True):
        assert_close(ours, theirs, 1e-11)


@pytest.mark.parametrize("name", ["depthwise", "fully_coupled", "circulant", "Depthwise", "Convolution"])
def test_programs_of_bounded_length(name):
    """The program with its gradient is as long for 900 points as for 500: the points are not unrolled."""

    def length(points):
        stencil = np.ones((points, 1, 1) if name in ("fully_coupled", "Convolution") else (points, 1), np.float32)
        if name[0].islower():
            function = partial(getattr(lowcost, name), method="direct")
        else:
            stencil, convolve = 1.0, getattr(operations, name)(stencil, np.ones(1, np.float32))

            def function(scale, y):
                return scale * convolve(y)

        loss = jax.grad(lambda *a: jnp.sum(function(*a) ** 2), (0, 1))
        return jax.jit(loss).lower(stencil, jnp.ones((2, 1000, 1), jnp.float32)).as_text().count("\n")

    assert length(900) == length(500)


def test_the_symbol_of_a_long_stencil():
    """The symbol of a long stencil is computed by FFT and has the eigenvalues of the same convolution."""
    rng = np.random.default_rng(0)
    stencil, y = rng.standard_normal((1025, 1)), rng.standard_normal((1030, 1))
    assert "fft" in str(jax.make_jaxpr(lambda θ: lowcost.symbol(θ, (1030,)))(stencil))
    direct = lowcost.depthwise(stencil, y, method="direct")
    assert_close(lowcost.apply_symbol(lowcost.symbol(stencil, (1030,)), y, method="fft"), direct, 1e-11)
