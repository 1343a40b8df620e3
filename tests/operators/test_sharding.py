"""Over a sharded batch no operator gathers: every device works on its own images, forward and backward."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, assert_close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowcost

WAYS = [(case, way) for case in CASES for way in case.ways]


@pytest.mark.parametrize(("case", "way"), WAYS, ids=str)
def test_no_gather(case, way):
    """The compiled value and gradient on four devices hold no all-gather, and equal those on one."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    weights, y = case.draw((3, 2), (5, 4), (8,), dtype=np.float32)
    along_batch = NamedSharding(mesh, PartitionSpec("data"))

    def value_and_gradient(weights, y):
        value, pull = jax.vjp(partial(case.function, **way), *weights, y)
        return value, pull(jnp.tanh(value))

    expected = jax.jit(value_and_gradient)(weights, y)
    with jax.set_mesh(mesh):
        compiled = jax.jit(value_and_gradient).lower(weights, jax.device_put(y, along_batch)).compile()
        value, gradient = jax.block_until_ready(compiled(weights, jax.device_put(y, along_batch)))
    assert "all-gather" not in compiled.as_text()
    assert value.sharding.is_equivalent_to(along_batch, y.ndim)
    assert_close(value, expected[0], 1e-5)
    for ours, theirs in zip(gradient, expected[1], strict=True):
        assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize(("case", "way"), [x for x in WAYS if not x[0].form], ids=str)
def test_axes_of_the_mesh_may_be_explicit(case, way):
    """As `jax.make_mesh` makes them: images that lie on all devices alike, and those that are spread over them."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    weights, y = case.draw((3, 2), (5, 4), (8,), dtype=np.float32)
    expected = case.function(*weights, y, **way)
    with jax.set_mesh(mesh):
        for sharding in (PartitionSpec(), PartitionSpec("data")):
            placed = jax.device_put(y, NamedSharding(mesh, sharding))
            assert_close(case.function(*weights, placed, **way), expected, 1e-5)


@pytest.mark.parametrize("form", ["", "_resolvent"])
def test_without_the_remedy_xla_gathers(form, monkeypatch):
    """The test above can fail: an FFT that is left to XLA's partitioner gathers, up to jax 0.11."""
    if jax.__version_info__ >= (0, 12):
        pytest.skip("fixed in jax 0.12")
    case = next(case for case in CASES if str(case) == f"depthwise{form}")
    monkeypatch.setattr("lowcost.images.BATCH_AXIS", "nothing is called so")
    with pytest.raises(AssertionError):
        test_no_gather(case, {"method": "fft"})


def test_no_sum_over_devices_inside_the_loop_over_images():
    """On a CPU the DFT by matrix product takes image after image; the stencil's gradient crosses devices once."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    y = jnp.ones((8, 5, 4, 2))
    loss = jax.grad(lambda stencil, y: jnp.sum(lowcost.depthwise_resolvent(stencil, y, 1.0, method="matmul") ** 2))
    with jax.set_mesh(mesh):
        y = jax.device_put(y, NamedSharding(mesh, PartitionSpec("data")))
        text = jax.jit(loss).lower(jnp.ones((3, 3, 2)), y).compile().as_text()
    bodies = re.findall(r"body=%?([\w.\-]+)", text)
    assert bodies
    for name in bodies:
        body = re.search(rf"^%?{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL)
        assert body
        assert "all-reduce" not in body.group()
    assert "all-reduce" in text
