"""The networks of Section 4."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest

from lowcost.analysis import max_stable_step
from lowcost.nn import ARCHITECTURES, ExplicitRDStep, ImplicitRDStep, network
from lowcost.nn.initializers import stable_stencil
from lowcost.nn.steps import EPSILON
from lowcost.spectral import symbol
from lowcost.train.state import count_weights

IMAGE = (12, 8, 3)


def weights(net, image_shape):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("width", "classes", "count"), [("A", 10, 101_066), ("B", 10, 216_106), ("B", 100, 250_756), ("C", 100, 423_460)]
)
def test_weights_are_those_of_table_2(architecture, width, classes, count):
    assert count_weights(weights(network(architecture, width, classes), (32, 32, 3))) == count


@pytest.mark.parametrize("grid", [(16,), (8, 12), (4, 4, 8)])
def test_one_network_for_signals_images_and_volumes(grid):
    net = network("implicit_rd", (2, 4), 3, steps_per_block=1, kernel_size=2)
    images = jnp.zeros((2, *grid, 2))
    if min(grid) >= 5:
        variables = jax.eval_shape(net.init, jax.random.key(0), images)
        assert jax.eval_shape(net.apply, variables, images).shape == (2, 3)
    else:
        with pytest.raises(ValueError, match="stencil 5x5x5 must lie between 1 and the grid 4x4x8"):
            jax.eval_shape(net.init, jax.random.key(0), images)


@pytest.mark.parametrize(("step", "name"), [(ExplicitRDStep, "explicit"), (ImplicitRDStep, "implicit")])
@pytest.mark.parametrize("train", [True, False])
def test_a_step_is_its_equation(step, name, train):
    """Eqs. (9) and (11) with the dense matrices of the paper, in training and at evaluation."""
    h, grid, c = 0.7, (4, 5), 3
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, *grid, c)).astype(np.float32)
    module = step(h=h)
    variables = module.init(jax.random.key(1), y, train=False)
    stencil = np.asarray(variables["params"]["stencil"], np.float64) * 5
    matrix = np.asarray(variables["params"]["reaction"]["matrix"], np.float64)
    mean, var = rng.normal(size=c), rng.uniform(0.5, 2, size=c)
    variables = {
        "params": {"stencil": jnp.float32(stencil), "reaction": variables["params"]["reaction"]},
        "batch_stats": {
            "reaction": {"normalize": {"statistics": {"mean": jnp.float32(mean), "var": jnp.float32(var)}}}
        },
    }
    result, _ = module.apply(variables, y, train=train, mutable=["batch_stats"])

    reacted = y.astype(np.float64) @ matrix
    if train:
        mean, var = reacted.mean((0, 1, 2)), reacted.var((0, 1, 2))
    reacted = np.maximum((reacted - mean) / np.sqrt(var + EPSILON), 0)
    operator = matrices.depthwise(stencil, grid)
    normal = operator.T @ operator
    if name == "explicit":
        expected = y + h * (matrices.product(-normal, y, grid) + reacted)
    else:
        expected = matrices.product(np.linalg.inv(np.eye(len(normal)) + h * normal), y + h * reacted, grid)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("h", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("window", [(3, 3), (7,), (2, 3, 2)])
def test_the_explicit_step_starts_stable(h, window):
    """h·max|λ|² ≤ 2 at initialisation, whatever the draw."""
    for seed in range(20):
        stencil = stable_stencil(h)(jax.random.key(seed), (*window, 4))
        assert h <= max_stable_step(symbol(stencil, (8,) * len(window))) * (1 + 1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_needs_no_gather(architecture):
    """The compiled gradient of a network over a sharded batch holds no all-gather."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    net = network(architecture, (2, 4), 3, steps_per_block=1)

    def loss(variables, images):
        return jnp.sum(net.apply(variables, images, train=True, mutable=["batch_stats"])[0] ** 2)

    with jax.set_mesh(mesh):
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32, sharding=batch)
        variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), variables)
        compiled = jax.jit(jax.grad(loss)).lower(variables, images).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("implicit", "A", 10), "architecture must be one of 'explicit_rd', 'implicit_rd' here, got 'implicit'"),
        (("implicit_rd", "D", 10), "width must be one of 'A', 'B', 'C' here, got 'D'"),
        (("implicit_rd", (4, 6), 10), r"width must double .* got \(4, 6\)"),
        (("implicit_rd", "A", 0), "num_classes must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(*arguments)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match=r"divisible by 4.*got shape \[1, 10, 12, 3\]"):
        weights(network("implicit_rd", "A", 10), (10, 12, 3))
    with pytest.raises(ValueError, match="stencil 3x3 must lie between 1 and the grid 2x2"):
        weights(network("implicit_rd", "A", 10), (8, 8, 1))
