"""A network of images that are not in [0, 1] standardises them itself, and so do all forms that are made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_models import answer

from lowcost.deploy import certified, fold, to_onnx, to_stablehlo, truncate
from lowcost.nn import ARCHITECTURES, Network, bound_layers, network, network_cost, stability_report

MEANS, DEVIATIONS = (1e5, -3.0), (40.0, 0.5)
SHAPE = (11, 7, 2)


def pair(architecture, **options):
    """Returns a network, one with moments, and variables of both."""
    options = {"steps_per_block": 1, "num_classes": 3, "width": (4, 8)} | options
    plain, net = (network(architecture, **options, moments=moments) for moments in (None, (MEANS, DEVIATIONS)))
    return plain, net, jax.jit(plain.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))


@pytest.fixture(scope="module")
def images():
    """Returns float images with an offset that is large compared with their deviation."""
    return (np.random.default_rng(0).normal(size=(3, *SHAPE)) * DEVIATIONS + MEANS).astype(np.float32)


def test_every_form_standardises(images):
    """Network, folded network, StableHLO and ONNX give the logits of standardised images."""
    plain, net, variables = pair("implicit_rd")
    want = jax.jit(plain.apply)(variables, (images - np.float32(MEANS)) / np.float32(DEVIATIONS))
    folded = fold(net, variables, SHAPE)
    exported = jax.export.deserialize(bytearray(to_stablehlo(folded)))
    forms = [jax.jit(lambda x: net.apply(variables, x)), jax.jit(folded), jax.jit(exported.call)]
    results = [*(form(images) for form in forms), answer(to_onnx(folded), images)]
    exact = certified(truncate(folded, 1e-12), jnp.asarray(images))
    for result in (*results, exact.logits):
        np.testing.assert_allclose(result, want, atol=1e-5 * np.abs(want).max())


def test_it_is_one_more_layer_without_weights():
    plain, net, variables = pair("implicit_rd")
    before, after = (bound_layers(x, variables, SHAPE) for x in (plain, net))
    assert [layer.name for layer in after] == ["standardization", *(layer.name for layer in before)]
    shapes = [jax.eval_shape(x.init, jax.random.key(0), jnp.zeros((1, *SHAPE))) for x in (plain, net)]
    assert shapes[0] == shapes[1]
    assert network_cost(net, SHAPE) == network_cost(plain, SHAPE)


def test_its_bound_is_the_largest_factor():
    plain, net, variables = pair("explicit_rd")
    report = stability_report(net, variables, SHAPE)
    np.testing.assert_allclose(report.layers[0].lipschitz, 1 / min(DEVIATIONS), rtol=1e-6)
    assert report.layers[1:] == stability_report(plain, variables, SHAPE).layers


def test_bfloat16_rounds_standardised_values(images):
    """Raw values near 1e5 would lose all of their digits."""
    plain, net, variables = pair("mobilenet", dtype=jnp.bfloat16)
    standardised = (images - np.float32(MEANS)) / np.float32(DEVIATIONS)
    np.testing.assert_array_equal(net.apply(variables, images), plain.apply(variables, standardised))


def test_equal_moments_make_equal_networks():
    """Moments from lists, tuples or arrays make one static argument of `jax.jit`."""
    kinds = ([[*MEANS], [*DEVIATIONS]], (MEANS, DEVIATIONS), np.array([MEANS, DEVIATIONS]))
    nets = {network("resnet", "A", 3, moments=moments) for moments in kinds}
    assert nets == {network("resnet", "A", 3, moments=(MEANS, DEVIATIONS))}
    assert network("resnet", "A", 3) not in nets
    assert network("resnet", "A", 3, moments=(MEANS, MEANS[:1] * 2)) not in nets
    assert nets.pop().moments == (MEANS, DEVIATIONS)
    assert network("resnet", "A", 3).moments is None
    assert Network(ARCHITECTURES["resnet"], (2,), 3).moments is None


@pytest.mark.parametrize(
    "moments",
    [((), ()), ((0.0,), (1.0, 1.0)), ((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((np.nan,), (1.0,)), ((0.0,), (np.inf,))],
)
def test_moments_that_cannot_standardise_are_refused(moments):
    with pytest.raises(ValueError, match=r"moments must be finite means and as many finite deviations above 0"):
        network("resnet", "A", 3, moments=moments)


def test_images_of_other_channels_are_refused():
    _, net, variables = pair("resnet")
    with pytest.raises(ValueError, match="channels, not counting a mask, got 3; make the network with one mean"):
        jax.eval_shape(net.apply, variables, jnp.zeros((1, 11, 7, 3)))
