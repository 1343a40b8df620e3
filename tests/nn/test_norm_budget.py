"""Networks keep their Lipschitz bound below a budget after every step, and the radii that follow from it hold."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import answer
from weights import as_if_trained

from lowcost import deploy
from lowcost.deploy.packaged import decode, encode
from lowcost.nn import ARCHITECTURES, ImplicitRDStep, Network, certified_radii, network, stability_report
from lowcost.nn import operations as ops
from lowcost.nn.limits import MARGIN, spectral_norms
from lowcost.nn.norm_budget import keep_norms, projection

NETWORKS = {
    "signals": ("explicit_rd", (33, 2), {}),
    "h = 0": ("explicit_rd", (9, 9, 1), {"h": 0.0}),
    "odd grid, h = 0.5": ("circulant_rd", (9, 11, 3), {"h": 0.5}),
    "volumes": ("explicit_rd", (9, 9, 9, 1), {}),
    "decoder": ("mobilenet", (9, 10, 3), {"head": "pixels", "decoder": True}),
    "pixels, even stencils": ("linear_mix", (9, 10, 3), {"head": "pixels", "kernel_size": 2}),
    "moments": ("implicit_rd", (12, 12, 2), {"moments": ((0.5, 2.0), (0.1, 3.0))}),
    "masked": ("explicit_rd", (20, 3), {"masked": True}),
    "symmetric, zero mean": ("implicit_rd", (12, 12, 1), {"boundary": "symmetric", "zero_mean": True}),
}


def made(architecture, shape, **options):
    """Returns a network with fixed scales, and random weights that are far too large."""
    net = network(architecture, (4, 8), 3, fixed_scale=True, **{"steps_per_block": 2} | options)
    return net, jax.tree.map(lambda x: 5 * x, as_if_trained(net, shape))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bound_keeps_to_the_budget(architecture):
    """The bound holds before the first step, after a step and in averages; it uses at least a fifth of the budget."""
    shape, budget = (10, 9, 3), 40.0
    net, variables = made(architecture, shape, steps_per_block=2 if architecture == "implicit_rd" else 1)
    project = projection(net, shape, budget)
    optimizer = optax.chain(optax.sgd(1.0), keep_norms(project))

    @jax.jit
    def step(params, gradient):
        gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
        return optax.apply_updates(params, optimizer.update(gradients, optimizer.init(params), params)[0])

    with jax.numpy_dtype_promotion("strict"):  # as some users set
        first = jax.jit(project)(variables["params"])
    second = step(first, -0.3)
    mean = jax.tree.map(lambda x, y: 0.6 * x + 0.4 * y, first, second)
    reports = [stability_report(net, {**variables, "params": params}, shape) for params in (first, second, mean)]
    assert all(report.lipschitz <= budget and not report.unstable for report in reports)
    assert reports[0].lipschitz > 0.2 * budget
    jax.tree.map(np.testing.assert_array_equal, step(first, 0.0), first)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_to_it(name):
    architecture, shape, options = NETWORKS[name]
    net, variables = made(architecture, shape, steps_per_block=1, **options)
    params = jax.jit(projection(net, shape, 1e4))(variables["params"])
    report = stability_report(net, {**variables, "params": params}, shape)
    assert 50 < report.lipschitz <= 1e4
    assert not report.unstable


def test_weights_within_their_limits_do_not_change():
    shape = (9, 9, 3)
    net, variables = made("linear_mix", shape)
    project = jax.jit(projection(net, shape, 1e3))
    for factor in (1e-3, 0.0):
        small = jax.tree.map(lambda x, factor=factor: factor * x, variables["params"])
        jax.tree.map(np.testing.assert_array_equal, project(small), small)


@settings(deadline=None)
@given(st.sampled_from([(1, 1), (3, 20), (20, 3), (17, 17)]), st.booleans(), st.integers(0, 99), st.floats(-12, 12))
def test_spectral_norms_are_bounds(shape, imaginary, seed, magnitude):
    """They are 1 to min(m, n)^(1/1024) times the largest singular value, up to rounding, at every magnitude."""
    parts = np.random.default_rng(seed).normal(size=(2, 3, *shape))
    matrices = (parts[0] + 1j * parts[1] if imaginary else parts[0]) * 10.0**magnitude
    expected = np.linalg.norm(matrices, ord=2, axis=(-2, -1))
    ratio = np.asarray(spectral_norms(jnp.asarray(matrices, np.complex64 if imaginary else np.float32))) / expected
    assert (ratio > 1 - MARGIN / 2).all()
    assert (ratio < min(shape) ** (1 / 1024) * (1 + 1e-5)).all()


def test_no_attack_within_the_radius_succeeds():
    """Runs gradient ascent towards each other class, within a radius just below the certified one."""
    shape = (10, 10, 2)
    net, variables = made("explicit_rd", shape)
    variables["params"] = jax.jit(projection(net, shape, 5.0))(variables["params"])
    images = jax.random.uniform(jax.random.key(2), (16, *shape))
    apply = jax.jit(partial(net.apply, variables))
    logits = apply(images)
    labels = logits.argmax(-1)
    radii = certified_radii(net, variables, images, labels, logits=logits)
    assert (radii > 0).all()
    distant = jnp.asarray(0.999 * radii, jnp.float32)[:, None, None, None]

    def size(y):
        return jnp.sqrt((y**2).sum((1, 2, 3), keepdims=True))

    def margin(change, other):
        z = apply(images + change)
        return (z[jnp.arange(16), labels] - z[jnp.arange(16), (labels + other) % 3]).sum()

    gradient_of_margin = jax.jit(jax.grad(margin))
    for other in (1, 2):
        change = jnp.zeros_like(images)
        for _ in range(20):
            gradient = gradient_of_margin(change, other)
            change = change - distant * gradient / size(gradient)
            change *= jnp.minimum(1, distant / size(change))
        np.testing.assert_array_equal(apply(images + change).argmax(-1), labels)
    wrong = certified_radii(net, variables, images, (labels + 1) % 3, logits=logits)
    assert (wrong < 0).all()


def test_the_radius_of_a_linear_network_is_the_distance_to_its_boundary():
    """Features that stay above 0 make the network affine: its margin falls to 0 at exactly this distance."""
    shape = (6, 6, 1)
    net = network("implicit_rd", (2, 4), 2, steps_per_block=1, fixed_scale=True)
    variables = jax.tree.map(jnp.zeros_like, as_if_trained(net, shape))
    params = variables["params"]
    params["opening"]["stencil"] = params["opening"]["stencil"].at[2, 2, 0, 0].set(1.0)
    params["classifier"]["kernel"] = params["classifier"]["kernel"].at[0].set(jnp.array([1.0, -1.0]))
    variables = {**variables, "params": params}
    image = jnp.full((1, *shape), 0.5)
    (radius,) = certified_radii(net, variables, image, [0])
    margins, apply = [], jax.jit(partial(net.apply, variables))
    for factor in (0, 0.5, 0.99):
        change = -factor * radius / 6  # the same for all 36 pixels, of norm factor · radius
        first, second = apply(image + change)[0]
        margins.append(float(first - second))
    np.testing.assert_allclose(margins, margins[0] * np.array([1, 0.5, 0.01]), rtol=1e-3)


def test_files_folded_and_exported_networks_keep_their_fixed_scale():
    shape = (9, 10, 3)
    net, variables = made("implicit_rd", shape)
    variables["params"] = jax.jit(projection(net, shape, 100.0))(variables["params"])
    images = jax.random.uniform(jax.random.key(4), (5, *shape))
    apply = jax.jit(lambda variables, images: net.apply(variables, images))
    expected = np.asarray(apply(variables, images))
    folded = deploy.fold(net, variables, shape)
    np.testing.assert_allclose(folded(images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answer(deploy.to_onnx(folded), np.asarray(images)), expected, rtol=1e-4, atol=1e-5)
    loaded = deploy.packaged.Loaded(
        net=net, variables=variables, classes=("a", "b", "c"), image_shape=shape, preprocessing="", dtype="uint8"
    )
    content = encode(loaded)
    again = decode(content, "file")
    assert again.net == net
    np.testing.assert_array_equal(apply(again.variables, images), expected)
    assert b'"format":"3"' in content.replace(b" ", b"")


def test_the_bound_of_an_own_step_is_its_own():
    """All its operations count, including a factor that follows its weights."""

    class Halved(nn.Module):
        @nn.compact
        def __call__(self, y, *, train):
            matrix = self.param("matrix", nn.initializers.normal(3.0), (y.shape[-1],) * 2)
            return 0.5 * nn.relu(y @ matrix)

        def operations(self, grid):
            matrix = np.asarray(self.get_variable("params", "matrix"))
            return ops.Pointwise(matrix), ops.Relu(), ops.Scale(np.full(len(matrix), 0.5))

        def weight_limits(self, bound):
            return {"matrix": 2 * bound}

    shape = (9, 9, 1)
    net = Network(Halved, (4, 8), 3, steps_per_block=1, fixed_scale=True)
    variables = as_if_trained(net, shape)
    variables["params"] = projection(net, shape, 10.0)(variables["params"])
    assert 1 < stability_report(net, variables, shape).lipschitz <= 10


def test_what_has_no_budget_is_refused():
    shape = (9, 9, 1)
    net, _ = made("implicit_rd", shape)
    message = r"opening must have normalisations with fixed_scale=True, got one that divides by a deviation"
    with pytest.raises(ValueError, match=message):
        projection(network("implicit_rd", (4, 8), 3), shape, 10.0)
    with pytest.raises(ValueError, match=message.replace("opening", "block1_step1")):
        projection(Network(ImplicitRDStep, (4, 8), 3, fixed_scale=True), shape, 10.0)
    for budget in (1e-3, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"budget must be finite and above 0\.\d+, the bound of this network"):
            projection(net, shape, budget)

    class Square(nn.Module):
        @nn.compact
        def __call__(self, y, *, train):
            return self.param("scale", nn.initializers.ones, ()) * y

    with pytest.raises(ValueError, match=r"block1_step1 must have a method weight_limits\(bound\), got Square"):
        projection(Network(Square, (4, 8), 3, fixed_scale=True), shape, 10.0)
    with pytest.raises(ValueError, match="params must be the weights"):
        keep_norms(projection(net, shape, 10.0)).update({}, optax.EmptyState())


def test_what_has_no_radii_is_refused():
    images = jnp.zeros((2, 9, 9, 1))
    for options in ({"head": "pixels"}, {"dtype": jnp.bfloat16}, {"masked": True}):
        with pytest.raises(ValueError, match="net must have the head 'class', no mask and at least float32, got head"):
            certified_radii(network("implicit_rd", (4, 8), 3, **options), {}, images, [0, 1])
    net, logits = network("implicit_rd", (4, 8), 3), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"logits must have shape \[2, 3\], one row per image, got \[2, 4\]"):
        certified_radii(net, {}, images, [0, 1], logits=np.zeros((2, 4)))
    for labels in ([0], [0, 3], [0, -1], [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"labels must be 2 integers from 0 to 2, got"):
            certified_radii(net, {}, images, labels, logits=logits)


def test_equal_classes_have_no_radius():
    """A tie has radius 0; a margin that no image changes has an infinite radius with the sign of the margin."""
    net, variables = made("implicit_rd", (9, 9, 1))
    variables["params"]["classifier"]["kernel"] = jnp.zeros((16, 3)).at[:, 2].set(1.0)
    logits = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    radii = certified_radii(net, variables, np.zeros((3, 9, 9, 1)), [0, 0, 0], logits=logits)
    assert radii[0] == 0
    assert 0 < radii[1] < np.inf  # the distance to class 2
    assert radii[2] == -np.inf
