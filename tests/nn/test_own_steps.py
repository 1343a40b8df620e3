"""Bounds, cost, folding and exports of a user's own step follow from its operations, however they are composed."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_models import answer

from lowcost import cost
from lowcost.analysis import operator_matrix
from lowcost.deploy import fold, to_onnx
from lowcost.nn import Network, network_cost, stability_report
from lowcost.nn import operations as ops
from lowcost.nn.costs import _multiply_adds
from lowcost.nn.stability import lipschitz

C, GRID = 4, (6, 8)
RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.normal(size=shape) / np.sqrt(shape[-1])


DEPTHWISE, EVEN = ops.Depthwise(weights(3, 3, C), weights(C)), ops.Depthwise(weights(2, 2, C))
POINTWISE, HALVES = ops.Pointwise(weights(C, C), weights(C)), ops.Pointwise(weights(2 * C, C))
COUPLED, SCALE = ops.Convolution(weights(3, 3, C, C)), ops.Scale(weights(C), weights(C))
THETA = np.float32(weights(3, 3, C))


def filters(grid):
    """Returns filters of Eqs. (11) and (9), with K_dw and with K_circ."""
    return [
        ops.Filter(THETA, 0.4, integrator, tuple(grid), circulant)
        for integrator in ("imex_euler", "forward_euler")
        for circulant in (False, True)
    ]


LINEAR = {
    "stencils": lambda grid: ops.Sum(((), (DEPTHWISE,), (EVEN,), (SCALE,))),
    "matrices": lambda grid: ops.Sum(((POINTWISE,), (COUPLED,), (DEPTHWISE,), ())),
    "nested": lambda grid: ops.Sum(((filters(grid)[0],), (ops.Sum(((POINTWISE,), (EVEN,))),))),
    "circulant": lambda grid: ops.Sum(((filters(grid)[3],),)),
    "side by side": lambda grid: ops.Concatenate(((SCALE,), (DEPTHWISE,), (filters(grid)[2],))),
}
COMPOSED = {
    "empty": lambda grid: (),
    "filters": lambda grid: (ops.Sum((*((x,) for x in filters(grid)), (COUPLED, ops.Relu(), POINTWISE))),),
    "chain": lambda grid: (DEPTHWISE, ops.Relu(), SCALE, COUPLED, filters(grid)[0], ops.Relu(), filters(grid)[2]),
    "channels": lambda grid: (ops.Concatenate(((DEPTHWISE, ops.Relu()), (COUPLED,))), HALVES),
    "linear": lambda grid: tuple(f(grid) for f in LINEAR.values() if not isinstance(f(grid), ops.Concatenate)),
}


def test_a_mirrored_explicit_filter_costs_what_its_transforms_do():
    """Its multiply-adds also count if no method is given."""
    mirrored, periodic = (ops.Filter(THETA, 0.4, "forward_euler", GRID, boundary=x) for x in ("symmetric", "periodic"))
    assert _multiply_adds([mirrored], GRID, {}) == _multiply_adds([periodic], GRID, {}) > 0


@pytest.mark.parametrize("name", LINEAR)
def test_bounds_of_linear_sums_are_exact(name):
    operation = LINEAR[name](GRID)

    def linear(y):
        return operation(y[None])[0] - operation(jnp.zeros_like(y)[None])[0]

    dense = np.linalg.norm(operator_matrix(linear, (*GRID, C)), ord=2)
    np.testing.assert_allclose(lipschitz((operation,), GRID), dense, rtol=1e-4)


class Composed(flax.linen.Module):
    """Applies constant operations as a step."""

    kind: str

    def operations(self, grid):
        return COMPOSED[self.kind](grid)

    def __call__(self, y, *, train):
        return ops.run(self.operations(y.shape[1:-1]), y)


@pytest.mark.parametrize("kind", [kind for kind in COMPOSED if kind != "empty"])
def test_composed_operations_are_bounded_folded_and_exported(kind):
    net = Network(lambda name: Composed(kind, name=name), (C,), 3, steps_per_block=1)
    shape = (*GRID, 2)
    images = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    want = jax.jit(net.apply)(variables, images)
    step = stability_report(net, variables, shape).layers[1]
    y = jax.random.normal(jax.random.key(1), (*GRID, C))
    jacobian = jax.jit(jax.jacobian(lambda y: ops.run(COMPOSED[kind](GRID), y[None])[0]))(y).reshape(y.size, y.size)
    assert 0 < np.linalg.norm(jacobian, ord=2) <= step.lipschitz * (1 + 1e-5)
    assert (step.stiffness is None) == (kind == "channels")
    folded = fold(net, variables, shape)
    scale = np.abs(want).max()
    np.testing.assert_allclose(jax.jit(folded)(images), want, atol=1e-5 * scale)
    np.testing.assert_allclose(answer(to_onnx(folded), images), want, atol=1e-5 * scale)


def test_the_cost_is_the_sum_over_the_operations():
    """Stencils count directly, and filters as in Table 1; a given method applies to both, but not to other layers."""
    net = Network(lambda name: Composed("filters", name=name), (C,), 3, steps_per_block=2)
    around = network_cost(Network(lambda name: Composed("empty", name=name), (C,), 3), (*GRID, 2))
    explicit, circulant = cost.depthwise_diffusion, cost.circulant_diffusion
    for method in (None, "matmul"):
        options = {"method": method} if method else {}
        implicit = options or {"method": "fft"}
        filters = [explicit(GRID, (3, 3), C, **x) for x in (options, implicit)]
        filters += [circulant(GRID, (3, 3), C, **x) for x in (options, implicit)]
        step = cost.total(
            [*filters, cost.fully_coupled(GRID, (3, 3), C, C, **options), cost.pointwise(GRID, C, C)]
        ).multiply_adds
        assert network_cost(net, (*GRID, 2), method=method) == (around.weights, around.multiply_adds + 2 * step)
    with pytest.raises(ValueError, match="method must be one of 'fft', 'matmul' here, got 'direct'"):
        network_cost(net, (*GRID, 2), method="direct")
