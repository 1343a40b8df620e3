"""Tests that `nn.infer` returns the outputs of `net.apply`, also where it takes one image after another."""

from functools import cache, partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from weights import as_if_trained

from lowcost import nn

KINDS = {
    "classes": ({}, (4, 16, 16, 3)),
    "pixels": ({"head": "pixels", "decoder": True}, (4, 16, 16, 3)),
    "masked signals": ({"masked": True}, (4, 32, 2)),
    "volumes": ({}, (4, 9, 10, 11, 1)),
}


@cache
def case(architecture="implicit_rd", kind="classes"):
    options, shape = KINDS[kind]
    net = nn.network(architecture, (4, 8), 3, steps_per_block=1, **options)
    return net, as_if_trained(net, shape[1:]), jax.random.uniform(jax.random.key(0), shape)


def devices(number=2, axis_type=AxisType.Auto):
    return jax.set_mesh(jax.make_mesh((number,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:number]))


def sharded(images):
    return jax.device_put(images, jax.NamedSharding(jax.sharding.get_mesh(), jax.P("data")))


def infer(net):
    return jax.jit(lambda variables, images: nn.infer(net, variables, images))


def equal(outputs, expected):
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["implicit_rd", "resnet"])
def test_the_outputs_are_those_of_all_images_at_once(architecture, kind):
    net, variables, images = case(architecture, kind)
    with devices():
        outputs = infer(net)(variables, sharded(images))
    equal(outputs, jax.jit(net.apply)(variables, images))


def test_no_device_holds_the_features_of_all_its_images():
    net, variables, images = case()
    images = jnp.tile(images, (16, 1, 1, 1))
    with devices():
        compiled = [jax.jit(f).lower(variables, sharded(images)).compile() for f in (net.apply, infer(net))]
    sizes = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    assert sizes[1] < sizes[0] / 4


def test_other_platforms_apply_each_layer_to_all_images():
    net, variables, images = case("resnet")
    with devices():
        traced = infer(net).trace(variables, images)
    assert traced.lower(lowering_platforms=("cpu",)).as_text().count("sdy.manual_computation") == 1
    for platform in ("tpu", "cuda"):
        assert "while" not in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("number", [1, 3], ids=["one device", "devices that do not divide the batch"])
def test_otherwise_the_program_is_that_of_apply(number):
    net, variables, images = case()
    with devices(number):
        applied, inferred = (str(jax.make_jaxpr(f)(variables, images)) for f in (net.apply, partial(nn.infer, net)))
    assert inferred == applied


def test_outside_of_a_jit_and_on_explicit_axes_the_outputs_are_those_of_apply():
    net, variables, images = case()
    with devices():
        assert jnp.array_equal(nn.infer(net, variables, sharded(images)), net.apply(variables, sharded(images)))
    with devices(axis_type=AxisType.Explicit):
        outputs = infer(net)(variables, sharded(images))
        assert jax.typeof(outputs).sharding.spec[0] == "data"
    equal(outputs, net.apply(variables, images))


class Pair(linen.Module):
    widths: list[int]

    @linen.compact
    def __call__(self, images, train):
        hidden = linen.Dense(self.widths[0])(images.mean((1, 2)))
        return {"hidden": hidden, "logits": linen.Dense(self.widths[1])(hidden)}


def test_own_networks_may_have_lists_as_fields_and_return_several_arrays():
    net, images = Pair([5, 3]), jnp.ones((4, 6, 6, 2)) * jnp.arange(4.0)[:, None, None, None]
    variables = net.init(jax.random.key(0), images, train=False)
    with devices():
        outputs = infer(net)(variables, sharded(images))
    jax.tree.map(equal, outputs, net.apply(variables, images, train=False))
