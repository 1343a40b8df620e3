"""Makes weights and statistics of networks as if trained, without compiling their initialisers."""

import jax
import jax.numpy as jnp
import numpy as np


def as_if_trained(net, image_shape):
    """Returns variables: weights of variance 1 / fan-in, means near 0, variances near 1."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    rng = np.random.default_rng(0)

    def weights(x):
        fan_in = max(1, x.size // x.shape[-1])
        return (rng.normal(size=x.shape) * fan_in**-0.5).astype(np.float32)

    def statistics(path, x):
        middle = 1.0 if path[-1].key == "var" else 0.0
        return (middle + rng.uniform(-0.3, 0.3, size=x.shape)).astype(np.float32)

    return {
        "params": jax.tree.map(weights, shapes["params"]),
        "batch_stats": jax.tree_util.tree_map_with_path(statistics, shapes["batch_stats"]),
    }
