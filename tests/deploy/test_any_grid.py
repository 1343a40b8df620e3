"""Networks take any grid: folded and exported ones agree with them, and pooling is the average of its windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_models import answer
from scipy import linalg

from lowcost.deploy import fold, to_onnx, to_stablehlo
from lowcost.nn import ARCHITECTURES, network
from lowcost.nn.operations import AveragePool
from lowcost.nn.stability import lipschitz

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
LONGEST = {1: 500, 2: 300, 3: 60}


def draw(number):
    """Returns an architecture, a width and a grid of one to three axes: primes, any sizes, and one very long axis."""
    rng, dims = np.random.default_rng(number), 1 + number % 3
    width, least = (((2, 4), 5), ((2, 4, 8), 9))[number % 2]  # a stencil of three points fits the last block
    grid = rng.integers(least, {1: 100, 2: 24, 3: 13}[dims], size=dims)
    if number % 4 == 1:
        grid = rng.choice([p for p in PRIMES[: 10 // dims + 1] if p >= least], size=dims)
    if number % 4 == 2:
        grid[:], grid[rng.integers(dims)] = least, rng.integers(LONGEST[dims] // 2, LONGEST[dims])
    return list(ARCHITECTURES)[number % len(ARCHITECTURES)], width, tuple(map(int, grid))


CASES = [draw(number) for number in range(60)]
# Every architecture, kind of grid and number of axes; all 60 cases would take minutes.
THOROUGH = [(name, (2, 4), grid) for name, _, grid in CASES[:35:5]]
EXPORTED = CASES[2], CASES[35]  # volumes with two blocks, and with three


def windows(n):
    """Returns the matrix [⌈n / 2⌉, n] of the average over every two points, and over the last one alone if n is odd."""
    return linalg.block_diag(*[np.full((1, 2), 0.5)] * (n // 2), *[np.ones((1, 1))] * (n % 2))


@pytest.fixture
def sample(trained):
    """Returns (architecture, width, grid) → network, variables, images."""

    def make(architecture, width, grid):
        images = np.random.default_rng(1).uniform(size=(2, *grid, 2)).astype(np.float32)
        return *trained(architecture, images.shape[1:], width=width), images

    return make


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_network_and_onnx_agree(sample, case):
    """Logits agree to 1e-4 of the largest."""
    net, variables, images = sample(*case)
    want = jax.jit(net.apply)(variables, images)
    got = answer(to_onnx(fold(net, variables, images.shape[1:])), images)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("case", THOROUGH, ids=str)
def test_network_folded_and_exported_agree_and_train(sample, case):
    """Logits agree to 1e-5 of the largest in JAX, to 1e-4 in onnxruntime; training has finite gradients."""
    net, variables, images = sample(*case)
    folded = fold(net, variables, images.shape[1:])
    exported = jax.export.deserialize(bytearray(to_stablehlo(folded)))

    def loss(params):
        logits, updates = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), updates

    @jax.jit
    def run(variables, images):
        training = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return net.apply(variables, images), folded(images), exported.call(images), training

    want, *others, training = run(variables, images)
    for got, tolerance in zip((*others, answer(to_onnx(folded), images)), (1e-5, 1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(training))


@pytest.mark.parametrize("grid", [*dict.fromkeys(case[2] for case in CASES), (1,), (1, 2), (3, 1, 5)], ids=str)
def test_pooling_averages_the_points_of_its_windows(grid):
    """Its values, its gradient and its norm are those of the dense matrix."""
    y = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
    z = np.random.default_rng(1).normal(size=(2, *(-(-n // 2) for n in grid), 3)).astype(np.float32)

    @jax.jit
    def run(y, z):
        pooled, back = jax.vjp(AveragePool(), y)
        return pooled, back(z)[0]

    pooled, gradient = run(y, z)
    matrices = [windows(n) for n in grid]
    for axis, matrix in enumerate(matrices, 1):
        y = np.moveaxis(np.tensordot(matrix, y, (1, axis)), 0, axis)
    np.testing.assert_allclose(pooled, y, atol=1e-6)
    expected = z
    for axis, matrix in enumerate(matrices, 1):
        expected = np.moveaxis(np.tensordot(matrix.T, expected, (1, axis)), 0, axis)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    norm = np.prod([np.linalg.norm(matrix, 2) for matrix in matrices])
    np.testing.assert_allclose(lipschitz((AveragePool(),), grid), norm, rtol=1e-12)


def test_even_axes_are_not_padded():
    """The program for even axes holds no concatenation; the program for an odd axis does."""
    even, odd = (str(jax.make_jaxpr(AveragePool())(jnp.zeros((1, *grid, 2)))) for grid in ((4, 6), (4, 5)))
    assert "concatenate" not in even
    assert "concatenate" in odd


@pytest.mark.parametrize(
    ("shape", "width", "kernel_size", "message"),
    [
        ((8, 8, 1), "A", 3, r"at least 9 points.* got shape \[1, 8, 8, 1\]; .*or fewer blocks, e.g. .*\(32, 64\)"),
        ((30, 4, 1), "A", 3, r"at least 9 points.* got shape \[1, 30, 4, 1\]; (?m:use larger images$)"),
        ((16, 1), "C", 3, r"at least 17 points.* or fewer blocks, e.g. a width of \(32, 64, 128\)"),
        ((6, 1), "A", 7, r"at least 25 points.*; (?m:use larger images$)"),
        ((4, 1), "A", 1, r"at least 5 points.*; (?m:use larger images$)"),
        ((7,), "A", 3, r"\[B, \*grid, C\] with one to three grid axes, got shape \[1, 7\]"),
        ((9, 9, 9, 9, 1), "A", 3, r"one to three grid axes, got shape \[1, 9, 9, 9, 9, 1\]"),
    ],
)
def test_grids_smaller_than_a_stencil_are_refused(shape, width, kernel_size, message):
    net = network("explicit_rd", width, 2, kernel_size=kernel_size, steps_per_block=1)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_smallest_grid_that_is_not_refused_fits(kernel_size, blocks):
    """A grid with one point less is refused, and the error states the smallest size."""
    least = max(5, (kernel_size - 1) * 2 ** (blocks - 1) + 1)
    net = network("mobilenet", [2 << i for i in range(blocks)], 2, kernel_size=kernel_size, steps_per_block=1)
    shapes = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((1, least, least + 1, 1)))
    assert shapes[0].shape == (1, 2)
    with pytest.raises(ValueError, match=f"at least {least} points"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, least - 1, least + 1, 1)))
