"""The whitened opening: its responses to image patches have variance 1 and no correlation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowcost import fully_coupled
from lowcost.nn import network
from lowcost.nn.initializers import patch_whitening

RNG = np.random.default_rng(0)


def smooth(shape):
    """Random images whose neighbouring pixels are alike."""
    images = RNG.normal(size=shape)
    for axis in range(1, len(shape)):
        images = images + np.roll(images, 1, axis) + 0.3 * np.roll(images, -2, axis)
    return images.astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((40, 9, 8, 3), (3, 3)), ((30, 6, 7, 1), (5, 5)), ((60, 20, 2), (3,)), ((9, 5, 4, 6, 1), (3,) * 3)],
)
def test_responses_are_white(shape, window):
    """Over all patches of all images, against NumPy's covariance; every second filter is the negative of the first."""
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


def test_a_network_starts_with_it():
    images = smooth((8, 12, 12, 3))
    init = patch_whitening(images)
    net = network("explicit_rd", (4,), 2, steps_per_block=1, opening_init=init)
    weights = jax.jit(net.init)(jax.random.key(0), images)["params"]["opening"]["stencil"]
    np.testing.assert_allclose(weights, init(jax.random.key(9), (5, 5, 3, 4)), rtol=1e-6)
