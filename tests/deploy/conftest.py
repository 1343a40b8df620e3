"""Small networks with weights and statistics as if trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowcost.nn import network


@pytest.fixture(scope="session")
def trained():
    """(architecture, image_shape, **options) → network, variables; nothing is compiled."""

    def make(architecture, image_shape, **options):
        options = {"width": (4, 8), "steps_per_block": 1, "h": 1.0 if architecture == "mobilenet" else 0.8} | options
        net = network(architecture, options.pop("width"), 5, **options)
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        rng = np.random.default_rng(0)

        def weights(x):
            fan_in = max(1, x.size // x.shape[-1])
            return (rng.normal(size=x.shape) * fan_in**-0.5).astype(np.float32)

        def statistics(path, x):
            middle = 1.0 if path[-1].key == "var" else 0.0
            return (middle + rng.uniform(-0.3, 0.3, size=x.shape)).astype(np.float32)

        return net, {
            "params": jax.tree.map(weights, shapes["params"]),
            "batch_stats": jax.tree_util.tree_map_with_path(statistics, shapes["batch_stats"]),
        }

    return make
