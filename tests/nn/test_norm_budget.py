"""Networks keep their Lipschitz bound below a budget after every step, and the radii that follow from it hold."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcost import deploy
from lowcost.deploy.packaged import decode, encode
from lowcost.nn import ARCHITECTURES, Network, certified_radii, network, stability_report
from lowcost.nn.norm_budget import keep_norms, spectral_norms, weight_limits

OPTIONS = {
    "signals": ((33, 2), {}),
    "odd grid, h = 0.5": ((9, 11, 3), {"h": 0.5}),
    "volumes": ((9, 9, 9, 1), {}),
    "decoder": ((9, 10, 3), {"head": "pixels", "decoder": True}),
    "pixels": ((9, 10, 3), {"head": "pixels"}),
    "moments": ((12, 12, 2), {"moments": ((0.5, 2.0), (0.1, 3.0))}),
    "masked": ((20, 3), {"masked": True}),
    "symmetric, zero mean": ((12, 12, 1), {"boundary": "symmetric", "zero_mean": True}),
}


def made(architecture, shape, **options):
    """A network with fixed scales, with random weights that are far too large."""
    net = network(architecture, (4, 8), 3, steps_per_block=2, fixed_scale=True, **options)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, *shape)))
    rng = np.random.default_rng(1)
    return net, jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), dict(variables))


def stepped(net, params, shape, budget, gradient=0.0):
    """The weights after a step of gradient descent with a constant gradient."""
    optimizer = optax.chain(optax.sgd(1.0), keep_norms(net, shape, budget))
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    return jax.jit(lambda p: optax.apply_updates(p, optimizer.update(gradients, optimizer.init(p), p)[0]))(params)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bound_keeps_to_the_budget(architecture):
    """It is reached up to what sums of operators and unused limits leave, and moving averages keep to it too."""
    shape, budget = (10, 9, 3), 40.0
    net, variables = made(architecture, shape)
    first = stepped(net, variables["params"], shape, budget)
    second = stepped(net, variables["params"], shape, budget, gradient=-0.3)
    mean = jax.tree.map(lambda x, y: 0.6 * x + 0.4 * y, first, second)
    for params in (first, second, mean):
        assert stability_report(net, {**variables, "params": params}, shape).lipschitz <= budget * (1 + 1e-5)
    assert stability_report(net, {**variables, "params": first}, shape).lipschitz > 0.2 * budget
    again = stepped(net, first, shape, budget)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), again, first)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_network_keeps_to_it(name):
    shape, options = OPTIONS[name]
    net, variables = made("implicit_rd", shape, **options)
    params = stepped(net, variables["params"], shape, 1e4)
    assert 100 < stability_report(net, {**variables, "params": params}, shape).lipschitz <= 1e4 * (1 + 1e-5)


def test_weights_within_their_limits_do_not_change():
    shape = (9, 9, 3)
    net, variables = made("linear_mix", shape)
    small = jax.tree.map(lambda x: 1e-3 * x, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, stepped(net, small, shape, 1e3), small)
    zero = jax.tree.map(jnp.zeros_like, small)
    jax.tree.map(np.testing.assert_array_equal, stepped(net, zero, shape, 1e3), zero)


@settings(deadline=None)
@given(st.sampled_from([(1, 1), (3, 20), (20, 3), (17, 17)]), st.booleans(), st.integers(0, 99), st.floats(-12, 12))
def test_spectral_norms_are_bounds(shape, imaginary, seed, magnitude):
    """Never below the largest singular value, at most min(m, n)^(1/1024) above it, at every magnitude."""
    parts = np.random.default_rng(seed).normal(size=(2, 3, *shape))
    matrices = (parts[0] + 1j * parts[1] if imaginary else parts[0]) * 10.0**magnitude
    expected = np.linalg.norm(matrices, ord=2, axis=(-2, -1))
    ratio = np.asarray(spectral_norms(jnp.asarray(matrices, np.complex64 if imaginary else np.float32))) / expected
    assert (ratio > 1 - 1e-5).all()
    assert (ratio < min(shape) ** (1 / 1024) * (1 + 1e-5)).all()


def test_no_attack_within_the_radius_succeeds():
    """Gradient ascent on each other class, on the sphere of a radius just below the certified one."""
    shape = (10, 10, 2)
    net, variables = made("explicit_rd", shape)
    variables["params"] = stepped(net, variables["params"], shape, 5.0)
    images = jax.random.uniform(jax.random.key(2), (16, *shape))
    logits = net.apply(variables, images)
    labels = logits.argmax(-1)
    radii = certified_radii(net, variables, images, labels)
    assert (radii > 0).all()
    distant = jnp.asarray(0.999 * radii, jnp.float32)[:, None, None, None]

    def size(y):
        return jnp.sqrt((y**2).sum((1, 2, 3), keepdims=True))

    def margin(change, other):
        z = net.apply(variables, images + change)
        return (z[jnp.arange(16), labels] - z[jnp.arange(16), (labels + other) % 3]).sum()

    for other in (1, 2):
        change = jnp.zeros_like(images)
        for _ in range(20):
            gradient = jax.grad(margin)(change, other)
            change = change - distant * gradient / size(gradient)
            change *= jnp.minimum(1, distant / size(change))
        np.testing.assert_array_equal(net.apply(variables, images + change).argmax(-1), labels)
    wrong = certified_radii(net, variables, images, (labels + 1) % 3)
    assert (wrong < 0).all()


def test_the_radius_of_a_linear_network_is_the_distance_to_its_boundary():
    """Features that stay above 0 make the network affine: its margin falls to 0 at exactly this distance."""
    shape = (6, 6, 1)
    net = network("implicit_rd", (2, 4), 2, steps_per_block=1, fixed_scale=True)
    variables = dict(jax.jit(net.init)(jax.random.key(3), jnp.ones((1, *shape))))
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["opening"]["stencil"] = params["opening"]["stencil"].at[2, 2, 0, 0].set(1.0)
    params["classifier"]["kernel"] = params["classifier"]["kernel"].at[0].set(jnp.array([1.0, -1.0]))
    variables = {**variables, "params": params}
    image = jnp.full((1, *shape), 0.5)
    (radius,) = certified_radii(net, variables, image, [0])
    margins = []
    for factor in (0, 0.5, 0.99):
        change = -factor * radius / 6  # the same for all 36 pixels, of norm factor · radius
        first, second = net.apply(variables, image + change)[0]
        margins.append(float(first - second))
    np.testing.assert_allclose(margins, margins[0] * np.array([1, 0.5, 0.01]), rtol=1e-3)


def test_files_folded_and_exported_networks_keep_their_fixed_scale():
    shape = (9, 10, 3)
    net, variables = made("implicit_rd", shape)
    variables["params"] = stepped(net, variables["params"], shape, 100.0)
    images = jax.random.uniform(jax.random.key(4), (5, *shape))
    expected = np.asarray(net.apply(variables, images))
    folded = deploy.fold(net, variables, shape)
    np.testing.assert_allclose(folded(images), expected, rtol=1e-4, atol=1e-5)
    loaded = deploy.packaged.Loaded(
        net=net, variables=variables, classes=("a", "b", "c"), image_shape=shape, preprocessing="", dtype="uint8"
    )
    content = encode(loaded)
    again = decode(content, "file")
    assert again.net == net
    np.testing.assert_array_equal(again.net.apply(again.variables, images), expected)
    assert b'"format":"3"' in content.replace(b" ", b"")


def test_what_has_no_budget_is_refused():
    shape = (9, 9, 1)
    net, _ = made("implicit_rd", shape)
    with pytest.raises(ValueError, match=r"net must have fixed_scale=True, got False; a normalisation undoes"):
        keep_norms(network("implicit_rd", (4, 8), 3), shape, 10.0)
    for budget in (1e-3, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"budget must be finite and above 0\.\d+, the bound of this network"):
            weight_limits(net, shape, budget)

    class Square(nn.Module):
        @nn.compact
        def __call__(self, y, *, train):
            return self.param("scale", nn.initializers.ones, ()) * y

        def operations(self, grid):
            return ()

    with pytest.raises(ValueError, match=r"block1_step1 must have a method weight_limits\(bound\), got Square"):
        keep_norms(Network(Square, (4, 8), 3, fixed_scale=True), shape, 10.0)
    with pytest.raises(ValueError, match="params must be the weights"):
        keep_norms(net, shape, 10.0).update({}, optax.EmptyState())
    dense = network("implicit_rd", (4, 8), 3, head="pixels")
    with pytest.raises(ValueError, match="net must have the head 'class', got 'pixels'"):
        certified_radii(dense, {}, jnp.zeros((1, *shape)), [0])
