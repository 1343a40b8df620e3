"""No operator gathers a sharded batch: every device computes its own images, forward and backward."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASE, CASES, METHODS, MIRRORED, QUICK, assert_close, over_bounded, over_every
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowcost

WAYS = [(case, way) for case in [*CASES, *MIRRORED] for way in case.ways]


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


@over_bounded
def test_boundaries(case):
    """Values and gradients of a sharded batch equal those without a mesh."""
    weights, y = case.draw((3,), (5,), (4,), 2, dtype=np.float32)

    ways = [way for way in case.bounded if way["boundary"] == "reflect" and way["method"] != "matmul"]

    def loss(*arrays):
        return sum(jnp.tanh(case.function(*arrays, **way)).sum() for way in ways)

    gradient = jax.jit(jax.value_and_grad(loss, range(len(weights) + 1)), compiler_options=QUICK)
    expected = gradient(*weights, y)
    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))):
        for ours, theirs in zip(jax.tree.leaves(gradient(*weights, y)), jax.tree.leaves(expected), strict=True):
            assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", ["depthwise", "fully_coupled", "circulant", "linear_mix"])
def test_gradients_in_a_shard_map_of_the_user(name):
    """Weights that all devices share get the sum of the gradients."""
    mesh = jax.make_mesh((4,), ("b",), axis_types=(AxisType.Auto,))
    weights, y = CASE[name].draw((3,), (5,), (4,), 2, dtype=np.float32)

    def gradient(weights, y):
        def loss(weights):
            return sum(jnp.tanh(CASE[name].function(*weights, y, **way)).sum() for way in CASE[name].ways)

        return jax.grad(loss)(weights)

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("b")), "out_specs": PartitionSpec()}
    shared = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(weights, y)
    for ours, theirs in zip(shared, gradient(weights, y), strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", ["depthwise", "depthwise_diffusion"])
def test_transposed_in_a_shard_map_of_the_user(name):
    """`jax.linear_transpose` of K is Kᵀ for the images of a device too."""
    mesh = jax.make_mesh((4,), ("b",), axis_types=(AxisType.Auto,))
    (stencil,), y = CASE[name].draw((3,), (5,), (4,), 2, dtype=np.float32)

    def transposed(y):
        operate = partial(CASE[name].function, stencil, method="direct")
        return jax.linear_transpose(operate, y)(y)[0]

    specs = {"in_specs": PartitionSpec("b"), "out_specs": PartitionSpec("b")}
    assert_close(jax.jit(jax.shard_map(transposed, mesh=mesh, **specs))(y), transposed(y), 1e-5)


def mapped_gradients(case, *, shared, mesh=None, trace=lambda function, *arrays: function(*arrays)):
    """Returns the gradients of each of two sets of arrays, except those of these numbers, which both sets share."""
    weights, y = case.draw((2,), (4,), (3,), 4, dtype=np.float32)
    if case.channels(weights) % 2:  # the adjoints of operators that add a channel
        weights, y = [w[..., :4] for w in weights], y[..., :4]
    axes = [None if i in shared else 0 for i in range(len(weights) + 1)]
    arrays = [x if axis is None else np.stack([x, 2 * x]) for x, axis in zip((*weights, y), axes, strict=True)]

    def gradients(*arrays):
        def loss(*arrays):
            return sum(jnp.tanh(case.function(*arrays, **way)).sum() for way in case.ways)

        return jax.grad(loss, range(len(arrays)))(*arrays)

    if mesh is not None:
        specs = [PartitionSpec(None if axis is None else "b") for axis in axes]
        arrays = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    return trace(jax.jit(jax.vmap(gradients, axes), compiler_options=QUICK), *arrays)


@over_every
@pytest.mark.parametrize("shared", [(), (0,), (-1,)], ids=["nothing", "weights", "features"])
def test_mapped_over_an_explicit_axis(case, shared):
    """`jax.vmap` over a sharded axis of the features, of the weights or of all keeps the sharding."""
    number = len(case.shapes((2,), 4))
    shared = [number if i < 0 else i for i in shared] if shared != (0,) else range(number)
    mesh = jax.make_mesh((2,), ("b",))
    with jax.set_mesh(mesh):
        for gradient in mapped_gradients(case, shared=shared, mesh=mesh, trace=jax.eval_shape):
            assert gradient.sharding.spec[0] == "b"


@pytest.mark.parametrize("name", ["depthwise", "circulant_resolvent_mirrored"])
def test_gradients_mapped_over_an_explicit_axis(name):
    """They equal those without a mesh, where the weights are mapped and the features are shared."""
    mesh = jax.make_mesh((2,), ("b",))
    expected = mapped_gradients(CASE[name], shared=[1])
    with jax.set_mesh(mesh):
        for ours, theirs in zip(mapped_gradients(CASE[name], shared=[1], mesh=mesh), expected, strict=True):
            assert_close(ours, theirs, 1e-5)


@over_every
def test_explicit_axes(case):
    """With any axis name, and batch, channels and weights sharded, values and gradients equal those without a mesh."""
    mesh = jax.make_mesh((2, 2), ("b", "m"))
    weights, y = case.draw((2,), (4,), (2, 3), 4, dtype=np.float32)
    if case.channels(weights) % 2:  # the adjoints of operators that add a channel
        weights, y = [w[..., :4] for w in weights], y[..., :4]

    def run(*arrays):
        def loss(*arrays):
            results = [case.function(*arrays, **way) for way in case.ways]
            return sum(jnp.tanh(x).sum() for x in results), results

        return jax.grad(loss, range(len(arrays)), has_aux=True)(*arrays)

    def place(x, *axes):
        whole = [axis if n % 2 == 0 else None for axis, n in zip(axes, x.shape, strict=True)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*whole)))

    compiled = jax.jit(run, compiler_options=QUICK)
    expected = compiled(*weights, y)
    with jax.set_mesh(mesh):
        placed = [place(w, *[None] * (w.ndim - 2), "b", "m") for w in weights], place(y, "b", None, None, "m")
        gradients, results = compiled(*placed[0], placed[1])
    for ours, theirs in zip(jax.tree.leaves((gradients, results)), jax.tree.leaves(expected), strict=True):
        assert_close(ours, theirs, 1e-5)
    for array, gradient in zip((*placed[0], placed[1]), gradients, strict=True):
        assert gradient.sharding == array.sharding
    for result in results:
        assert result.sharding.spec[0] == "b"
        assert result.shape != y.shape or case.operator == "pointwise" or result.sharding == placed[1].sharding


@pytest.mark.parametrize("name", ["depthwise", "fully_coupled"])
@pytest.mark.parametrize("method", METHODS)
def test_explicit_axes_outside_of_jit(name, method):
    """Results agree with and without `jax.set_mesh`, under `jax.vmap` over a sharded axis, and in `jax.shard_map`."""
    mesh = jax.make_mesh((4,), ("batch",))
    (stencil,), y = CASE[name].draw((2,), (4,), (4,), dtype=np.float32)
    apply = partial(getattr(lowcost, name), stencil, method=method)
    expected, along_batch = apply(y), PartitionSpec("batch")
    placed = jax.device_put(y, NamedSharding(mesh, along_batch))
    results = [apply(placed)]
    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.vmap(lambda y: apply(y[None])[0]))(placed)
        by_hand = jax.shard_map(apply, in_specs=along_batch, out_specs=along_batch)(placed)
        results += [
            apply(placed),
            apply(jax.device_put(y, NamedSharding(mesh, PartitionSpec()))),
            apply(y),
            mapped,
            by_hand,
        ]
    for result in results:
        assert_close(result, expected, 1e-5)


@pytest.mark.parametrize("case", [CASE["depthwise_resolvent"], CASE["circulant"]], ids=str)
def test_no_gather_on_explicit_axes(case):
    """The compiled value and gradient hold no all-gather, for axes of any name."""
    mesh = jax.make_mesh((4,), ("batch",))
    weights, y = case.draw((3,), (5,), (8,), dtype=np.float32)
    with jax.set_mesh(mesh):
        y = jax.device_put(y, NamedSharding(mesh, PartitionSpec("batch")))
        loss = jax.grad(lambda *a: jnp.tanh(case.function(*a, method="fft")).sum(), (0, 1))
        assert "all-gather" not in jax.jit(loss).lower(*weights, y).compile().as_text()


@pytest.mark.parametrize(("axes", "shape"), [(("batch",), (4,)), (("data", "model"), (2, 2))], ids=str)
def test_auto_axes_of_any_name(axes, shape):
    """Axes of type Auto, which a traced function cannot see, may have other names, or hold channels."""
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    (stencil,), y = CASE["depthwise"].draw((2,), (4,), (4,), 2, dtype=np.float32)
    loss = jax.jit(jax.grad(lambda *a: jnp.tanh(lowcost.depthwise(*a, method="fft")).sum(), (0, 1)))
    expected = loss(stencil, y)
    spec = PartitionSpec(axes[0], None, *axes[1:])
    with jax.set_mesh(mesh):
        for ours, theirs in zip(loss(stencil, jax.device_put(y, NamedSharding(mesh, spec))), expected, strict=True):
            assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("spec", [("b",), (None, "b"), (None, None, "m"), (None, "b", "m")], ids=str)
def test_symbols_of_sharded_stencils(spec):
    """Symbols, and filters by them, are right for stencils that are sharded along any axis."""
    mesh = jax.make_mesh((2, 2), ("b", "m"))
    stencil = np.random.default_rng(0).normal(size=(2, 2, 4)).astype(np.float32)
    placed = jax.device_put(stencil, NamedSharding(mesh, PartitionSpec(*spec)))
    for function, window in (
        (lowcost.symbol, (2, 2)),
        (lowcost.circulant_symbol, (2, 2)),
        (lowcost.coupled_symbol, (2,)),
    ):
        assert_close(jnp.abs(function(placed, window)), np.abs(function(stencil, window)), 1e-5)
    assert_close(lowcost.apply_symbol(placed, placed), lowcost.apply_symbol(stencil, stencil), 1e-5)


@pytest.mark.parametrize("form", ["", "_resolvent"])
def test_without_the_remedy_xla_gathers(form, monkeypatch):
    """The test above can fail: without `per_shard` XLA gathers for an FFT, up to jax 0.11."""
    if jax.__version_info__ >= (0, 12):
        pytest.skip("fixed in jax 0.12")
    case = next(case for case in CASES if str(case) == f"depthwise{form}")
    monkeypatch.setattr("lowcost.batching.BATCH_AXIS", "nothing is called so")
    with pytest.raises(AssertionError, match="all-gather"):
        test_no_gather(case, {"method": "fft"})


def test_no_sum_over_devices_inside_the_loop_over_images():
    """On a CPU the matrix product processes one image after another; devices sum the stencil's gradient once."""
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


def test_the_mesh_of_the_context_is_used_for_arrays_of_another_one():
    """JAX allows this for axes of type Auto."""
    (stencil,), y = CASE["depthwise"].draw((3,), (4,), (4,), dtype=np.float32)
    first, second = (jax.make_mesh((4,), (name,), axis_types=(AxisType.Auto,)) for name in ("data", "x"))
    placed = jax.device_put(y, NamedSharding(first, PartitionSpec("data")))
    with jax.set_mesh(second):
        assert_close(
            lowcost.depthwise(stencil, placed, method="fft"), lowcost.depthwise(stencil, y, method="fft"), 1e-5
        )
