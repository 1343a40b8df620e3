"""Tests the whitened opening, with uncorrelated responses of variance 1, and stencils with a given reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowcost import circulant_symbol, fully_coupled, squared_modulus, symbol
from lowcost.analysis import green_function, green_radius
from lowcost.nn import (
    ImplicitCirculantRDStep,
    ImplicitDiffusion,
    ImplicitRDStep,
    bound_layers,
    network,
    stability_report,
)
from lowcost.nn.initializers import near_identity, patch_whitening, reaching_stencil

RNG = np.random.default_rng(0)


def smooth(shape):
    """Returns random images whose neighbouring pixels are similar."""
    images = RNG.normal(size=shape)
    for axis in range(1, len(shape)):
        images = images + np.roll(images, 1, axis) + 0.3 * np.roll(images, -2, axis)
    return images.astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((40, 9, 8, 3), (3, 3)), ((30, 6, 7, 1), (5, 5)), ((60, 20, 2), (3,)), ((9, 5, 4, 6, 1), (3,) * 3)],
)
def test_responses_are_white(shape, window):
    """NumPy's covariance over all patches is the identity; every second filter is the negative of the one before."""
    images = smooth(shape)
    features = 10
    stencil = patch_whitening(images)(jax.random.key(0), (*window, shape[-1], features))
    responses = np.asarray(fully_coupled(stencil, jnp.asarray(images - images.mean()))).reshape(-1, features)
    np.testing.assert_array_equal(stencil[..., ::2], -stencil[..., 1::2])
    np.testing.assert_allclose(np.cov(responses[:, ::2].T), np.eye(features // 2), atol=0.02)


def test_the_largest_components_come_first_and_further_filters_are_sampled():
    images = smooth((20, 8, 8, 1))
    init = patch_whitening(images)
    few, many = (init(jax.random.key(1), (3, 3, 1, features)) for features in (4, 40))
    np.testing.assert_array_equal(few, many[..., :4])
    sizes = np.linalg.norm(np.asarray(many).reshape(9, 40), axis=0)
    assert np.all(np.diff(sizes[:18]) > -1e-5)  # whitening enlarges small components
    assert not np.array_equal(many[..., 18:], init(jax.random.key(2), (3, 3, 1, 40))[..., 18:])


def test_whitening_is_for_the_channels_of_its_images():
    with pytest.raises(ValueError, match="images must have the 3 channels of the layer's input, got 1"):
        patch_whitening(smooth((4, 8, 8, 1)))(jax.random.key(0), (3, 3, 3, 8))


def test_a_network_starts_with_it():
    images = smooth((8, 12, 12, 3))
    init = patch_whitening(images)
    net = network("explicit_rd", (4,), 2, steps_per_block=1, opening_init=init)
    weights = jax.jit(net.init)(jax.random.key(0), images)["params"]["opening"]["stencil"]
    np.testing.assert_allclose(weights, init(jax.random.key(9), (5, 5, 3, 4)), rtol=1e-6)


@pytest.mark.parametrize("window", [(3,), (4,), (7,), (3, 3), (5, 4), (7, 7), (3, 3, 3), (5, 5, 5)], ids=str)
def test_the_implicit_step_starts_with_the_wanted_reach(window):
    """Every channel has it within 20 % on grids of four times the reach; every sampled stencil has mean 0."""
    for h, reach in ((1.0, 2.0), (0.3, 4.0), (30.0, 8.0)):
        grid = tuple(max(m, int(4 * reach)) for m in window)
        for seed in range(3 if len(window) < 3 else 1):
            stencil = reaching_stencil(h, reach)(jax.random.key(seed), (*window, 16))
            np.testing.assert_allclose(green_radius(stencil, grid, h), reach, rtol=0.2)
            np.testing.assert_allclose(stencil.sum(range(len(window))), 0, atol=1e-5 * reach)
            largest = h * squared_modulus(symbol(stencil, grid)).max()
            assert 0.4 * reach**2 < largest < 3.6 * reach**2


def test_near_identity():
    """The stencil is 1 at the centre plus little noise everywhere."""
    noise = near_identity(jax.random.key(0), (3, 4, 8)).at[1, 2].add(-1)
    assert 0 < jnp.abs(noise).max() < 0.3


@pytest.mark.parametrize("stencil", [[0.2, 1.0, 0.4], [1.0, 1.0, 1.0]], ids=str)
def test_the_radius_of_stencils_with_a_mean(stencil):
    """It is that of the Green's function, or 0 for a blur, which damps constants more than the lowest frequency."""
    stencil, n = jnp.array(stencil)[:, None], 512
    green = np.asarray(green_function(stencil, (n,), 2.0), np.float64)[:, 0]
    expected = np.sqrt(max(0, ((np.arange(n) - n // 2) ** 2 * green).sum() / green.sum()))
    np.testing.assert_allclose(green_radius(stencil, (n,), 2.0), expected, rtol=1e-2, atol=1e-3)


def test_the_radius_is_that_of_the_green_function():
    """√(Σ |x|² g / Σ g) summed over a grid on which g does not wrap around."""
    stencil, grid = reaching_stencil(2.0, 3.0)(jax.random.key(0), (3, 3, 8)), (64, 96)
    green = np.asarray(green_function(stencil, grid, 2.0), np.float64)
    squares = sum((x - n // 2) ** 2 for x, n in zip(np.indices(grid), grid, strict=True))
    expected = np.sqrt((squares[..., None] * green).sum((0, 1)) / green.sum((0, 1)))
    np.testing.assert_allclose(expected, 3, rtol=1e-2)
    np.testing.assert_allclose(green_radius(stencil, grid, 2.0), expected, rtol=1e-2)


def test_the_circulant_stencil_reaches_as_far_over_all_channel_frequencies():
    """The mean square over the frequencies along the channels is the square of the reach."""
    shared = reaching_stencil(1.0, 4.0)(jax.random.key(0), (3, 3, 32))
    z = np.asarray(squared_modulus(circulant_symbol(shared / np.sqrt(32), (64, 64))))
    squares = 2 * (z[1, 0] + z[0, 1]) * (64 / (2 * np.pi)) ** 2
    np.testing.assert_allclose(np.sqrt(squares.mean()), 4, rtol=0.02)


@pytest.mark.parametrize("architecture", ["explicit_rd", "circulant_rd"])
def test_explicit_networks_start_stable(architecture):
    """No step is unstable at the network's own time step."""
    net = network(architecture, (4, 8), 3, steps_per_block=1, h=30.0)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 1)))
    assert stability_report(net, variables, (12, 12, 1)).unstable == ()


@pytest.mark.parametrize("step", [ImplicitRDStep, ImplicitCirculantRDStep, ImplicitDiffusion])
def test_steps_and_layers_have_the_reach_of_their_time_step(step):
    options = {"features": 64, "kernel_size": (3, 3)} if step is ImplicitDiffusion else {}
    module, y = step(h=0.3, reach=4.0, **options), jnp.zeros((1, 8, 8, 64))
    train = {} if step is ImplicitDiffusion else {"train": False}
    params = jax.jit(lambda key: module.init(key, y, **train)["params"])(jax.random.key(0))
    if step is not ImplicitCirculantRDStep:
        np.testing.assert_allclose(green_radius(params["stencil"], (64, 64), 0.3), 4, rtol=0.02)
        return
    z = 0.3 * np.asarray(squared_modulus(circulant_symbol(params["shared_stencil"] / 8, (64, 64))))
    squares = 2 * (z[1, 0] + z[0, 1]) * (64 / (2 * np.pi)) ** 2
    np.testing.assert_allclose(np.sqrt(squares.mean()), 4, rtol=0.02)


@pytest.mark.parametrize("architecture", ["implicit_rd", "implicit_circulant_rd"])
def test_networks_start_with_the_wanted_reach(architecture):
    """Steps of a bfloat16 network have the reach, and its logits are finite; other initial weights do not change."""
    net = network(architecture, (4, 8), 3, steps_per_block=1, reach=4.0, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    variables = net.init(jax.random.key(0), images)
    for layer in bound_layers(net, variables, (16, 16, 1)):
        if "step" in layer.name and architecture == "implicit_rd":
            stencil = layer.module.get_variable("params", "stencil")
            np.testing.assert_allclose(green_radius(stencil, (64, 64), 1.0), 4, rtol=0.02)
    logits, _ = net.apply(variables, images, train=True, mutable=["batch_stats"])
    assert np.isfinite(logits).all()
    usual = network(architecture, (4, 8), 3, steps_per_block=1).init(jax.random.key(0), images)
    changed = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: bool((a != b).any()), variables, usual))
    names = {jax.tree_util.keystr(path): differs for path, differs in changed}
    assert all(differs == ("step" in name and "stencil" in name) for name, differs in names.items())


def test_the_time_step_of_a_reach_may_be_traced():
    """`jax.jit` may trace it, as it traces the time step of `stable_stencil`."""
    sample = jax.jit(lambda h: reaching_stencil(h, 3.0)(jax.random.key(0), (3, 3, 4)))
    expected = reaching_stencil(2.0, 3.0)(jax.random.key(0), (3, 3, 4))
    np.testing.assert_allclose(sample(2.0), expected, rtol=1e-5, atol=1e-6)


def test_a_reach_needs_three_points():
    with pytest.raises(
        ValueError, match=r"stencil must have at least 3 points .*got shape \[3, 2, 4\]; use a kernel_size"
    ):
        reaching_stencil(1.0, 2.0)(jax.random.key(0), (3, 2, 4))
