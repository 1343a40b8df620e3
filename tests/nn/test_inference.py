"""nn.infer: the outputs of `net.apply`, image by image where each core of a CPU is a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lowcost import batching, nn

KINDS = {
    "classes": ({}, (4, 16, 16, 3)),
    "pixels": ({"head": "pixels", "decoder": True}, (4, 16, 16, 3)),
    "masked signals": ({"masked": True}, (4, 32, 2)),
    "volumes": ({}, (4, 9, 10, 11, 1)),
}


def case(architecture="implicit_rd", kind="classes"):
    options, shape = KINDS[kind]
    net = nn.network(architecture, (4, 8), 3, **options)
    images = jax.random.uniform(jax.random.key(0), shape)
    variables = net.init(jax.random.key(1), images)
    statistics = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    return net, {**variables, "batch_stats": statistics}, images


def a_device_per_core(monkeypatch, axis_type=AxisType.Auto):
    monkeypatch.setattr(batching, "cores", lambda: 2)
    return jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:2]))


def sharded(images):
    return jax.device_put(images, jax.NamedSharding(jax.sharding.get_mesh(), jax.P("data")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["implicit_rd", "resnet"])
def test_the_outputs_are_those_of_all_images_at_once(architecture, kind, monkeypatch):
    net, variables, images = case(architecture, kind)
    expected = net.apply(variables, images)
    with a_device_per_core(monkeypatch):
        outputs = jax.jit(nn.infer, static_argnums=0)(net, variables, sharded(images))
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_no_device_holds_the_features_of_all_its_images(monkeypatch):
    net, variables, images = case()
    images = jnp.tile(images, (16, 1, 1, 1))
    with a_device_per_core(monkeypatch):
        sizes = [
            jax.jit(function).lower(variables, sharded(images)).compile().memory_analysis().temp_size_in_bytes
            for function in (net.apply, lambda *arguments: nn.infer(net, *arguments))
        ]
    assert sizes[1] < sizes[0] / 4


def test_other_platforms_apply_each_layer_to_all_images(monkeypatch):
    net, variables, images = case("resnet")
    with a_device_per_core(monkeypatch):
        traced = jax.jit(lambda *arguments: nn.infer(net, *arguments)).trace(variables, images)
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_a_device_of_several_cores_takes_all_images_at_once(monkeypatch):
    monkeypatch.setattr(batching, "cores", lambda: 2)
    net, variables, images = case()
    assert jnp.array_equal(nn.infer(net, variables, images), net.apply(variables, images))


def test_explicit_axes_keep_their_sharding(monkeypatch):
    net, variables, images = case()
    expected = net.apply(variables, images)
    with a_device_per_core(monkeypatch, AxisType.Explicit):
        outputs = jax.jit(nn.infer, static_argnums=0)(net, variables, sharded(images))
        assert jax.typeof(outputs).sharding.spec[0] == "data"
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
