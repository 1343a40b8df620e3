"""The bounds of the stability report hold."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowcost.analysis import operator_matrix
from lowcost.nn import ARCHITECTURES, Network, network, stability_report
from lowcost.nn.operations import AveragePool, GlobalAveragePool
from lowcost.nn.transitions import Connecting

IMAGE = (8, 6, 3)


@pytest.fixture(params=ARCHITECTURES)
def trained(request):
    """A small network with weights and statistics as if trained."""
    net = network(request.param, (2, 4), 3, steps_per_block=2, h=1.0 if request.param == "mobilenet" else 0.8)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    rng = np.random.default_rng(0)
    return net, {
        "params": jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables["params"]),
        "batch_stats": jax.tree.map(  # means near 0, variances near 1
            lambda x: (x + rng.uniform(-0.3, 0.3, size=x.shape)).astype(np.float32), variables["batch_stats"]
        ),
    }


def test_no_perturbation_grows_more_than_the_bound(trained):
    """‖J‖₂ ≤ the product of the layers' bounds, J the Jacobian of the network at random images."""
    net, variables = trained
    bound = stability_report(net, variables, IMAGE).lipschitz
    jacobian = jax.jit(jax.jacobian(lambda image: net.apply(variables, image[None])[0]))
    for key in jax.random.split(jax.random.key(1), 5):
        j = np.asarray(jacobian(jax.random.normal(key, IMAGE))).reshape(3, -1)
        assert 0 < np.linalg.norm(j, ord=2) <= bound


def test_linear_layers_are_exact(trained):
    """The norm of the opening, a connecting layer, the pooling and the classifier is that of their dense matrix."""
    net, variables = trained
    report = {layer.name: layer.lipschitz for layer in stability_report(net, variables, IMAGE).layers}
    shapes = {"block1_connecting": (8, 6, 2), "block1_pooling": (8, 6, 4), "pooling": (4, 3, 8)}
    connecting = {kind: tree["block1_connecting"] for kind, tree in variables.items()}
    maps = {
        "block1_connecting": partial(Connecting().apply, connecting, train=False),
        "block1_pooling": AveragePool(),
        "pooling": GlobalAveragePool(),
    }
    for name, function in maps.items():

        def affine(y, function=function):
            return function(y[None])[0]

        def linear(y, affine=affine):
            return affine(y) - affine(jnp.zeros_like(y))

        dense = np.linalg.norm(operator_matrix(linear, shapes[name]), ord=2)
        np.testing.assert_allclose(report[name], dense, rtol=1e-5)
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    np.testing.assert_allclose(report["classifier"], np.linalg.norm(kernel, ord=2), rtol=1e-6)


def test_a_layer_without_a_known_bound_is_an_error():
    """Rather than a product that leaves it out."""

    class Square(nn.Module):
        def __call__(self, y, *, train):
            return y**2

    net = Network(Square, (2, 4), 3)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    message = r"block1_step1 must have a method operations\(grid\), got Square without one; return what"
    with pytest.raises(ValueError, match=message):
        stability_report(net, variables, IMAGE)


def test_the_report_names_the_explicit_steps_beyond_their_limit():
    """h·max|λ|² > 2 in one explicit step is found; the implicit network with the same weights is stable."""
    images = jnp.zeros((1, *IMAGE))
    explicit, implicit = (network(a, (2, 4), 3, steps_per_block=2) for a in ("explicit_rd", "implicit_rd"))
    variables = jax.jit(explicit.init)(jax.random.key(0), images)
    assert stability_report(explicit, variables, IMAGE).unstable == ()
    step = variables["params"]["block2_step1"]
    step["stencil"] = jnp.zeros_like(step["stencil"]).at[1, 1].set(1.5)  # λ = 1.5 everywhere, h|λ|² = 2.25
    report = stability_report(explicit, variables, IMAGE)
    assert report.unstable == ("block2_step1",)
    assert "unstable" in str(report)
    layer = next(layer for layer in report.layers if layer.name == "block2_step1")
    assert layer.stiffness == pytest.approx(2.25)
    assert layer.amplification == pytest.approx((-1.25, -1.25))
    assert stability_report(implicit, variables, IMAGE).unstable == ()
