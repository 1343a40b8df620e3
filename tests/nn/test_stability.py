"""The bounds of the stability report hold."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import as_if_trained

from lowcost.analysis import operator_matrix
from lowcost.nn import ARCHITECTURES, Network, bound_layers, network, stability_report

IMAGE = (8, 6, 3)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request):
    """Returns a small network with weights and statistics as if trained."""
    net = network(request.param, (2, 4), 3, steps_per_block=1, h=1.0 if request.param == "mobilenet" else 0.8)
    return net, as_if_trained(net, IMAGE)


def test_no_perturbation_grows_more_than_the_bound(trained):
    """‖J‖₂ ≤ the product of the layers' bounds, J the Jacobian of the network at random images."""
    net, variables = trained
    bound = stability_report(net, variables, IMAGE).lipschitz
    jacobian = jax.jit(jax.jacobian(lambda image: net.apply(variables, image[None])[0]))
    for key in jax.random.split(jax.random.key(1), 5):
        j = np.asarray(jacobian(jax.random.normal(key, IMAGE))).reshape(3, -1)
        assert 0 < np.linalg.norm(j, ord=2) <= bound


def test_linear_layers_are_exact(trained):
    """The norm of each operation of a connecting layer, and of the classifier, is that of its dense matrix."""
    net, variables = trained
    with jax.numpy_dtype_promotion("strict"):  # as some users set
        report = {layer.name: layer.lipschitz for layer in stability_report(net, variables, IMAGE).layers}
    layers = {layer.name: layer for layer in bound_layers(net, variables, IMAGE)}
    for name, shape in {"block1_connecting": (8, 6, 2), "block2_connecting": (4, 3, 4)}.items():
        y, norms = jnp.zeros(shape), []
        for operation in layers[name].operations():

            def linear(y, operation=operation):
                return operation(y[None])[0] - operation(jnp.zeros_like(y)[None])[0]

            norms.append(np.linalg.norm(operator_matrix(linear, y.shape), ord=2))
            y = linear(y)
        np.testing.assert_allclose(report[name], np.prod(norms), rtol=1e-5)
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    np.testing.assert_allclose(report["classifier"], np.linalg.norm(kernel, ord=2), rtol=1e-6)


def test_weights_that_are_not_finite_have_no_bound():
    net = network("resnet", (2,), 3, steps_per_block=1)
    variables = jax.tree.map(lambda x: np.full_like(x, np.nan), net.init(jax.random.key(0), jnp.zeros((1, 5, 5, 1))))
    assert np.isnan(stability_report(net, variables, (5, 5, 1)).lipschitz)


def test_a_layer_without_a_known_bound_is_an_error():
    """Without the error, the product of the bounds would omit the layer."""

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
