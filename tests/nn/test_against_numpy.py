"""Compares the seven networks with the paper's formulas in float64, with dense matrices and SciPy."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lowcost.nn import network

H = 0.7
IMAGES = (2, 8, 6, 3)


# The operators of Section 3: stencils [*window, c_in, c_out], features [batch, *grid, c], matrices [n c_out, n c_in].


def convolve(theta, y):
    """K(θ) y of Eq. (4): block (o, i) is the circular correlation with the stencil theta[..., i, o]."""
    result = np.zeros((*y.shape[:-1], theta.shape[-1]))
    for i, o in np.ndindex(theta.shape[-2:]):
        if theta[..., i, o].any():
            result[..., o] += ndimage.correlate(y[..., i], theta[None, ..., i, o], mode="wrap")
    return result


def dense(theta, grid):
    """Returns the matrix K(θ), column by column: K(θ) applied to every unit vector."""
    size = np.prod(grid) * theta.shape[-2]
    units = np.eye(size).reshape(size, *grid, -1)
    return convolve(theta, units).reshape(size, -1).T


def product(K, y):
    return (y.reshape(len(y), -1) @ K.T).reshape(*y.shape[:-1], -1)


def solve(A, y):
    return np.linalg.solve(A, y.reshape(len(y), -1).T).T.reshape(y.shape)


def K_full(stencil, y):
    """Eq. (4)."""
    return dense(stencil, y.shape[1:-1])


def K_dw(stencil, y):
    """Eq. (5): block (i, i) is C(θ^(i))."""
    theta = np.zeros((*stencil.shape, stencil.shape[-1]))
    for i in range(stencil.shape[-1]):
        theta[..., i, i] = stencil[..., i]
    return dense(theta, y.shape[1:-1])


def M(matrix, y):
    """Eq. (6): the same matrix at every pixel; matrix[i, o] couples channel i to channel o."""
    return np.kron(np.eye(np.prod(y.shape[1:-1])), matrix.T)


def K_lm(stencil, matrix, y):
    """Eq. (7)."""
    return K_dw(stencil, y) + M(matrix, y)


def K_circ(phi, y):
    """Eq. (12): block (i, j) is C(θ^(j - i mod c)), counted from 0; the trainable weights are φ = √c θ."""
    c = phi.shape[-1]
    theta = np.zeros((*phi.shape, c))
    for i, j in np.ndindex(c, c):
        theta[..., j, i] = phi[..., (j - i) % c] / np.sqrt(c)
    return dense(theta, y.shape[1:-1])


def relu(x):
    return np.maximum(x, 0)


def normalization(train):
    """Returns N(s, x) by the statistics of the batch, which update the running ones, or by the running ones."""

    def N(s, x):
        running = s["normalize"]
        mean, var = running["mean"], running["var"]
        if train:
            pixels = x.reshape(-1, x.shape[-1])
            mean, var = pixels.mean(0), pixels.var(0)
            running.update(mean=0.9 * running["mean"] + 0.1 * mean, var=0.9 * running["var"] + 0.1 * var)
        return (x - mean) / np.sqrt(var + 1e-5)

    return N


# One step of every architecture: weights p, statistics s (updated in place), features y, normalization N.


def resnet(p, s, y, N):
    """Eqs. (1) and (3), with the step size h."""
    K1, K2 = K_full(p["stencil1"], y), K_full(p["stencil2"], y)
    return y + H * product(K2.T, relu(N(s, product(K1, y))))


def linear_mix(p, s, y, N):
    """Eqs. (1) and (3) with the operators of Eq. (7)."""
    K1, K2 = K_lm(p["stencil1"], p["matrix1"], y), K_lm(p["stencil2"], p["matrix2"], y)
    return y + H * product(K2.T, relu(N(s, product(K1, y))))


def mobilenet(p, s, y, N):
    """Eq. (13)."""
    between = relu(N(s, product(K_dw(p["stencil"], y), y)))
    return relu(N(s["reaction"], product(M(p["reaction"]["matrix"], y), between)))


def reaction(p, s, y, N):
    return relu(N(s["reaction"], product(M(p["reaction"]["matrix"], y), y)))


def explicit(K, p, s, y, N):
    """Eq. (9)."""
    return y + H * (-product(K.T @ K, y) + reaction(p, s, y, N))


def implicit(K, p, s, y, N):
    """Eq. (11)."""
    return solve(np.eye(len(K)) + H * K.T @ K, y + H * reaction(p, s, y, N))


STEPS = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "linear_mix": linear_mix,
    "explicit_rd": lambda p, s, y, N: explicit(K_dw(p["stencil"], y), p, s, y, N),
    "implicit_rd": lambda p, s, y, N: implicit(K_dw(p["stencil"], y), p, s, y, N),
    "circulant_rd": lambda p, s, y, N: explicit(K_circ(p["shared_stencil"], y), p, s, y, N),
    "implicit_circulant_rd": lambda p, s, y, N: implicit(K_circ(p["shared_stencil"], y), p, s, y, N),
}


# The network of Section 4.


def connecting(p, s, x, N):
    """N([x; K_dw x])."""
    return N(s, np.concatenate([x, product(K_dw(p["stencil"], x), x)], -1))


def pool(x):
    """Returns the mean of every two neighbours along each axis; the last point of an odd axis is alone."""
    for axis in range(1, x.ndim - 1):
        pairs = np.split(x, range(2, x.shape[axis], 2), axis)
        x = np.concatenate([pair.mean(axis, keepdims=True) for pair in pairs], axis)
    return x


def paper(architecture, params, statistics, images, train):
    """Returns the logits and the running statistics, which training updates."""
    N, step, s = normalization(train), STEPS[architecture], copy.deepcopy(statistics)
    y = relu(N(s["opening"], product(K_full(params["opening"]["stencil"], images), images)))
    for block in (1, 2):
        for name in (f"block{block}_step1", f"block{block}_step2"):
            y = step(params[name], s[name], y, N)
        y = connecting(params[f"block{block}_connecting"], s[f"block{block}_connecting"], y, N)
        if block == 1:
            y = pool(y)
    y = y.mean(tuple(range(1, y.ndim - 1)))
    return y @ params["classifier"]["kernel"] + params["classifier"]["bias"], s


# The comparison.


def random_variables(net, images, rng):
    """Returns random weights and running statistics, none at an initial 0 or 1, in the precision of the images."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), images, train=False))

    def draw(path, leaf):
        values = rng.uniform(0.5, 2, leaf.shape) if path[-1].key == "var" else rng.normal(scale=0.4, size=leaf.shape)
        return values.astype(images.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_close(actual, expected, tolerance):
    """Asserts that the arrays agree up to the tolerance times the largest entry."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_is_the_paper(architecture, shape, train, dtype, tolerance):
    rng = np.random.default_rng(0)
    options = {} if architecture == "mobilenet" else {"h": H}
    net = network(architecture, (4, 8), 3, steps_per_block=2, dtype=dtype, **options)
    images = rng.normal(size=shape).astype(dtype)
    variables = random_variables(net, images, rng)
    apply = jax.jit(lambda variables, images: net.apply(variables, images, train=train, mutable=["batch_stats"]))
    logits, updates = apply(variables, images)
    assert logits.dtype == dtype

    exact = jax.tree.map(np.float64, variables)
    expected, statistics = paper(architecture, exact["params"], exact["batch_stats"], np.float64(images), train)
    assert_close(logits, expected, tolerance)
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), updates["batch_stats"], statistics)


@pytest.mark.parametrize(("architecture", "train"), [*((name, True) for name in STEPS), ("implicit_rd", False)])
def test_images_in_float32(architecture, train):
    assert_is_the_paper(architecture, IMAGES, train, jnp.float32, 1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("architecture", STEPS)
def test_images_in_float64(architecture, train):
    assert_is_the_paper(architecture, IMAGES, train, jnp.float64, 1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 7, 2), (2, 9, 5, 2), (2, 5, 6, 7, 2)])
@pytest.mark.parametrize("architecture", STEPS)
def test_signals_and_volumes_of_any_size(architecture, shape):
    assert_is_the_paper(architecture, shape, True, jnp.float64, 1e-11)
