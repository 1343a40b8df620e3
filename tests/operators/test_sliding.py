"""Sliding a stencil: a primitive that keeps all of JAX's transformations, of every order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BOUNDARIES, assert_close
from jax.test_util import check_grads

import lowcost

pytestmark = pytest.mark.usefixtures("x64")

OPERATORS = {
    "depthwise": (lowcost.depthwise, (3, 2, 2)),
    "depthwise_adjoint": (lowcost.depthwise_adjoint, (3, 2, 2)),
    "fully_coupled": (lowcost.fully_coupled, (3, 2, 2, 3)),
    "fully_coupled_adjoint": (lowcost.fully_coupled_adjoint, (3, 2, 3, 2)),
}


def draw(name, seed=0):
    """The operator, its stencil, and features of two images with two channels."""
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
    """Gradients of many stencils, of many images, of both; and the gradient of what is mapped: as one by one."""
    function, stencil, y = draw(name)
    stencils = jnp.stack([stencil, -2 * stencil, stencil**2])
    images = jnp.stack([y, y + 1, y**2])

    def loss(stencil, y):
        return jnp.sum(jnp.tanh(function(stencil, y, method="direct")))

    gradient = jax.grad(loss, (0, 1))
    for axes in ((0, None), (None, 0), (0, 0)):
        arguments = [many if axis == 0 else many[0] for many, axis in zip((stencils, images), axes, strict=True)]
        one_by_one = [
            gradient(*(x[i] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True))) for i in range(3)
        ]
        mapped = jax.vmap(gradient, axes)(*arguments)
        outside = jax.grad(lambda *a, axes=axes: jax.vmap(loss, axes)(*a).sum(), (0, 1))(*arguments)
        for k, axis in enumerate(axes):
            expected = np.stack([g[k] for g in one_by_one])
            assert_close(mapped[k], expected, 1e-12)
            assert_close(outside[k], expected if axis == 0 else expected.sum(0), 1e-12)


@pytest.mark.parametrize("method", ["direct", "matmul"])
def test_hessian_vector_products(method):
    """Forward over reverse, as for the curvature of a loss: all methods agree."""
    function, stencil, y = draw("depthwise")

    def product(method):
        gradient = jax.grad(lambda stencil: jnp.sum(jnp.tanh(function(stencil, y, method=method)) ** 2))
        return jax.jvp(gradient, (stencil,), (stencil**2,))[1]

    assert_close(product(method), product("fft"), 1e-11)


def test_no_zero_padded_sums_on_the_way_back():
    """The gradient's program is the three primitives: nothing of what JAX would derive from slices."""
    _, stencil, y = draw("depthwise")
    text = str(
        jax.make_jaxpr(jax.grad(lambda s, y: jnp.sum(lowcost.depthwise(s, y, method="direct") ** 2), (0, 1)))(
            stencil, y
        )
    )
    for name in ("slide[", "slide_adjoint[", "slide_gradient["):
        assert name in text
    assert "pad[" not in text
