"""A folded network computes what the network computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowcost.deploy import fold
from lowcost.nn.operations import Depthwise, Filter, Sum
from lowcost.operators.depthwise import depthwise_resolvent

CASES = [  # all architectures are in test_any_grid.py
    ("resnet", (6, 8, 1), 2),  # stencils of an even size, whose adjoint is not centred
    ("linear_mix", (6, 6, 2), 2),
    ("resnet", (8, 7, 1), 4),  # as large as the grid of the second block
    ("linear_mix", (7, 8, 2), 4),
    ("explicit_rd", (6, 8, 3), 2),
    ("explicit_rd", (6, 6, 3), 3),  # 5 points of I - hKᵀK on 3 of the grid
    ("implicit_rd", (12, 2), 3),
    ("explicit_rd", (6, 6, 6, 1), 3),
]


@pytest.mark.parametrize(("architecture", "image_shape", "kernel_size"), CASES)
def test_logits_are_the_same(trained, architecture, image_shape, kernel_size):
    net, variables = trained(architecture, image_shape, kernel_size=kernel_size)
    images = np.random.default_rng(1).uniform(size=(3, *image_shape)).astype(np.float32)
    want = jax.jit(net.apply)(variables, images)
    got = jax.jit(fold(net, variables, image_shape))(images)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("architecture", ["implicit_rd", "implicit_circulant_rd"])
def test_a_batch_may_be_sharded(trained, architecture):
    """Along an Explicit axis, and in a `jax.shard_map` that calls the network first."""
    net, variables = trained(architecture, (8, 6, 3))
    images = np.random.default_rng(1).uniform(size=(8, 8, 6, 3)).astype(np.float32)
    mesh, along_batch = jax.make_mesh((4,), ("b",)), jax.P("b")
    placed = jax.device_put(images, jax.NamedSharding(mesh, along_batch))
    mapped = jax.shard_map(fold(net, variables, (8, 6, 3)), mesh=mesh, in_specs=along_batch, out_specs=along_batch)
    want, by_hand = jax.jit(net.apply)(variables, images), jax.jit(mapped)(placed)
    with jax.set_mesh(mesh):
        explicit = jax.jit(fold(net, variables, (8, 6, 3)))(placed)
    for got in (by_hand, explicit):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("circulant", [False, True])
def test_a_filter_may_be_called_first_under_a_mesh(circulant):
    stencil = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(4, 6, 2)).astype(np.float32)
    alone, first = (Filter(stencil, 1.0, "imex_euler", (6,), circulant=circulant) for _ in range(2))
    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        sharded = jax.jit(first)(y)
    np.testing.assert_allclose(sharded, alone(y), atol=1e-6)


def test_other_modules_and_unscaled_images_are_refused(trained):
    """Without the errors, a folded network would compute wrong logits."""
    with pytest.raises(TypeError, match=r"net must be a lowcost\.nn\.Network, got Dense; for other modules"):
        fold(nn.Dense(3), {}, (8, 6, 3))
    with pytest.raises(TypeError, match=r"images must be real floating point, got uint8; scale them"):
        fold(*trained("mobilenet", (8, 6, 3)), (8, 6, 3))(np.zeros((1, 8, 6, 3), np.uint8))


def test_a_batch_may_be_empty(trained):
    folded = fold(*trained("implicit_rd", (8, 6, 3)), (8, 6, 3))
    assert jax.eval_shape(folded, jnp.zeros((0, 8, 6, 3))).shape == (0, 5)


def test_no_normalisation_remains_and_steps_have_the_stated_operations(trained):
    net, variables = trained("explicit_rd", (8, 8, 3))
    layers = {layer.name: layer.operations for layer in fold(net, variables, (8, 8, 3)).layers}
    (step,) = layers["block1_step1"]
    assert isinstance(step, Sum)
    (stencil,), (_, _) = step.branches
    assert isinstance(stencil, Depthwise)
    assert stencil.stencil.shape == (5, 5, 4)
    net, variables = trained("implicit_rd", (8, 8, 3))
    layers = {layer.name: layer.operations for layer in fold(net, variables, (8, 8, 3)).layers}
    assert isinstance(layers["block1_step1"][-1], Filter)


def test_a_filter_is_the_resolvent_and_its_response_the_green_function():
    rng = np.random.default_rng(0)
    stencil = rng.normal(size=(3, 3, 2)).astype(np.float32)
    y = rng.normal(size=(2, 6, 5, 2)).astype(np.float32)
    step = Filter(stencil, 0.7, "imex_euler", (6, 5))
    np.testing.assert_allclose(step(jnp.asarray(y)), depthwise_resolvent(jnp.asarray(stencil), y, 0.7), atol=2e-6)
    impulse = np.zeros((1, 6, 5, 2), np.float32)
    impulse[:, 3, 2] = 1
    np.testing.assert_allclose(step(jnp.asarray(impulse))[0], step.response, atol=1e-6)


def test_less_is_computed(trained):
    """XLA counts fewer operations: diffusions need no transforms, and reactions one multiplication less per feature."""

    def operations(function):
        return jax.jit(function).lower(jnp.zeros((1, 16, 16, 3))).cost_analysis()["flops"]

    for architecture, most in {"explicit_rd": 0.9, "implicit_rd": 0.98, "mobilenet": 1}.items():
        net, variables = trained(architecture, (16, 16, 3), width=(16, 32))
        folded = fold(net, variables, (16, 16, 3))
        assert operations(folded) < most * operations(lambda x, net=net, variables=variables: net.apply(variables, x))


def test_other_images_are_refused(trained):
    folded = fold(*trained("implicit_rd", (8, 8, 3)), (8, 8, 3))
    with pytest.raises(ValueError, match=r"images must be \[B, 8, 8, 3\].*got shape \[1, 16, 16, 3\]"):
        folded(jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="at least 5 points"):
        fold(*trained("implicit_rd", (8, 8, 3)), (4, 8, 3))


def test_no_stencil_is_computed_twice(trained):
    """Each further step adds as many operations to the compiled program as the one before it."""

    def operations(steps):
        folded = fold(*trained("explicit_rd", (12, 12, 3), width=(4,), steps_per_block=steps), (12, 12, 3))
        return jax.jit(folded).lower(jnp.zeros((2, 12, 12, 3))).compile().cost_analysis()["flops"]

    first, second, third = map(operations, (1, 2, 3))
    assert third - second == pytest.approx(second - first, rel=0.05)
