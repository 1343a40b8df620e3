"""Tests the networks of Section 4."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from lowcost import analysis
from lowcost.analysis import max_stable_step
from lowcost.nn import ARCHITECTURES, ImplicitCirculantRDStep, ImplicitRDStep, network, network_cost
from lowcost.nn import operations as ops
from lowcost.nn.initializers import stable_shared_stencil, stable_stencil
from lowcost.spectral import circulant_symbol, symbol
from lowcost.train.state import count_weights

IMAGE = (12, 8, 3)


def weights(net, image_shape):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("width", "classes", "counts"),
    [
        ("A", 10, {"linear_mix": 195_146, "resnet": 1_555_274, "others": 101_066}),
        ("B", 10, {"linear_mix": 421_738, "resnet": 3_494_122, "others": 216_106}),
        ("B", 100, {"linear_mix": 456_388, "resnet": 3_528_772, "others": 250_756}),
        ("C", 100, {"linear_mix": 788_900, "resnet": 6_324_900, "others": 423_460}),
    ],
)
def test_weights_are_those_of_table_2(architecture, width, classes, counts):
    count = counts.get(architecture, counts["others"])
    net = network(architecture, width, classes)
    assert count_weights(weights(net, (32, 32, 3))) == count
    assert network_cost(net, (32, 32, 3)).weights == count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("grid", [(16,), (8, 12), (6, 6, 8)])
def test_one_network_for_signals_images_and_volumes(architecture, grid):
    net = network(architecture, (2, 4), 3, steps_per_block=1, kernel_size=2)
    images = jnp.zeros((2, *grid, 2))
    with jax.numpy_dtype_promotion("strict"):  # as some users set
        variables = jax.eval_shape(net.init, jax.random.key(0), images)
        assert jax.eval_shape(net.apply, variables, images).shape == (2, 3)


@pytest.mark.parametrize("h", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("window", [(3, 3), (7,), (2, 3, 2)])
def test_the_explicit_step_starts_stable(h, window):
    """h·max|λ|² ≤ 2 holds at initialisation for every sample."""
    keys, grid = jax.random.split(jax.random.key(0), 20), (8,) * len(window)

    @jax.jit
    @jax.vmap
    def symbols(key):
        shared = [(c, stable_shared_stencil(h)(key, (*window, c))) for c in (1, 4, 64)]
        of_circulant = [circulant_symbol(stencil / np.sqrt(c), grid) for c, stencil in shared]
        return symbol(stable_stencil(h)(key, (*window, 4)), grid), of_circulant

    of_depthwise, of_circulant = symbols(keys)
    for λ in of_depthwise:
        assert h <= max_stable_step(λ) * (1 + 1e-6)
    for λ in (one for several in of_circulant for one in several):
        assert h <= max_stable_step(λ) * (1 + 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_needs_no_gather(architecture):
    """The compiled gradient of a network over a sharded batch holds no all-gather."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    width = (2, 4) if architecture == "implicit_rd" else (2,)  # the layer between two blocks is that of all networks
    net = network(architecture, width, 3, steps_per_block=1)

    def loss(variables, images):
        return jnp.sum(net.apply(variables, images, train=True, mutable=["batch_stats"])[0] ** 2)

    with jax.set_mesh(mesh):
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32, sharding=batch)
        variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), variables)
        compiled = jax.jit(jax.grad(loss)).lower(variables, images).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled


def test_explicit_mesh_axes_of_any_name():
    """Loss and gradients on sharded images, with weights that are sharded or not, equal those on one device."""
    net = network("linear_mix", (2,), 3, steps_per_block=1)
    images = np.random.default_rng(0).uniform(size=(4, 5, 3)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)

    def loss(params, images):
        logits, _ = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2)

    run = jax.jit(jax.value_and_grad(loss))
    expected, mesh = run(variables["params"], images), jax.make_mesh((2, 2), ("b", "m"))

    def place(w):
        spec = [None] * (w.ndim - 1) + ["m"] if w.ndim > 1 and w.shape[-1] % 2 == 0 else []
        return jax.device_put(w, jax.NamedSharding(mesh, jax.P(*spec)))

    with jax.set_mesh(mesh):
        params = jax.tree.map(place, variables["params"])
        result = run(params, jax.device_put(images, jax.NamedSharding(mesh, jax.P("b"))))
    chex.assert_trees_all_close(jax.device_get(result), jax.device_get(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_networks_are_one_static_argument(architecture):
    """Networks made from equal options, even of NumPy's types, are equal, have one hash, and are traced once."""
    chex.clear_trace_counter()
    count, options = np.int64(3), {"kernel_size": 3, "steps_per_block": 2}
    nets = [
        network(architecture, (8, 16), 3, **options),
        network(architecture, [8, 16], 3, **options, dtype="float32"),
        network(architecture, np.array([8, 16]), count, kernel_size=count, steps_per_block=np.int32(2), h=jnp.ones(())),
    ]
    assert len({*nets}) == 1
    assert network(architecture, (8, 16), 3, kernel_size=1, steps_per_block=2) not in nets
    assert network(architecture, (8, 16), 3, steps_per_block=2, dtype=jnp.bfloat16) not in nets
    assert all(type(x) is int for x in (*nets[2].channels, nets[2].num_classes, nets[2].steps_per_block))
    step = jax.jit(chex.assert_max_traces(lambda net, x: x + net.num_classes, n=1), static_argnums=0)
    assert [float(step(net, jnp.zeros(()))) for net in nets] == [3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("implicit", "A", 10), "architecture must be one of 'resnet', .*'implicit_circulant_rd' here, got 'implicit'"),
        (("implicit_rd", "D", 10), "width must be one of 'A', 'B', 'C' here, got 'D'"),
        (("implicit_rd", (4, 6), 10), r"width must double .* got \(4, 6\)"),
        (("implicit_rd", (4.0, 8.0), 10), r"width must double .* in whole numbers, .* got \(4.0, 8.0\)"),
        (("implicit_rd", np.array([]), 10), r"width must double .* got \(\)"),
        (("implicit_rd", "A", 0), "num_classes must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(*arguments)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("explicit_rd", {"steps_per_block": 0}, "steps_per_block must be a whole number of at least 1, got 0"),
        ("explicit_rd", {"kernel_size": 0}, "kernel_size must be a whole number of at least 1, got 0"),
        ("explicit_rd", {"h": -1.0}, "h must be a finite time step ≥ 0, got -1"),
        (
            "explicit_rd",
            {"reach": 4.0},
            "reach must be 0 for 'explicit_rd', .* got 4.0; use e.g. 'implicit_rd'",
        ),
        ("implicit_rd", {"reach": -1.0}, "reach must be finite and above 0, got -1.0"),
        ("implicit_rd", {"reach": 1.0, "h": 0.0}, "h must be finite and above 0, got 0.0"),
        ("mobilenet", {"h": 0.5}, r"h must be 1 for 'mobilenet', .* \(Eq. 13\), got 0.5"),
    ],
)
def test_bad_options_are_refused(architecture, options, message):
    with pytest.raises(ValueError, match=message):
        network(architecture, "A", 10, **options)


def test_a_dtype_that_cannot_hold_features_is_refused():
    with pytest.raises(TypeError, match="dtype must be real floating point"):
        network("implicit_rd", "A", 10, dtype=jnp.int32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_for_the_features_alone(architecture):
    """Only features are bfloat16; weights, statistics, gradients and logits are float32, and logits are near exact."""
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
    exact, half = (network(architecture, (4,), 3, steps_per_block=1, dtype=t) for t in (jnp.float32, jnp.bfloat16))
    variables = jax.jit(half.init)(jax.random.key(1), images)

    def loss(params):
        logits, updates = half.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: "_step" in (module.name or ""),
        )
        return jnp.sum(logits**2), (logits, updates)

    @jax.jit
    def run(variables):
        logits, _ = exact.apply(variables, images, train=True, mutable=["batch_stats"])
        return jax.grad(loss, has_aux=True)(variables["params"]), logits

    (grads, (rounded, updates)), logits = run(variables)
    assert {x.dtype for x in jax.tree.leaves(updates["intermediates"])} == {jnp.dtype(jnp.bfloat16)}
    others = (variables, grads, rounded, updates["batch_stats"])
    assert {x.dtype for x in jax.tree.leaves(others)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(rounded, logits, atol=0.05 * np.abs(logits).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float64_is_for_the_features_alone(architecture, x64):
    """Weights and statistics are float32 before and after a step of training, whatever JAX's default float is."""
    images = jax.random.uniform(jax.random.key(0), (2, 6, 6, 3))
    net = network(architecture, (4,), 3, steps_per_block=1, dtype=jnp.float64)
    variables = jax.eval_shape(net.init, jax.random.key(1), images)
    logits, updates = jax.eval_shape(partial(net.apply, train=True, mutable=["batch_stats"]), variables, images)
    assert logits.dtype == jnp.float64
    assert {x.dtype for x in jax.tree.leaves((variables, updates))} == {jnp.dtype(jnp.float32)}


def size(tree):
    """Returns the bytes of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_remat_keeps_less_and_changes_nothing():
    """Weights, logits, statistics and gradients are the same; less is stored for the backward pass."""
    images = jax.random.uniform(jax.random.key(0), (16, 16, 16, 3))
    kept = []

    @partial(jax.jit, static_argnums=0)
    def run(net):
        variables = net.init(jax.random.key(1), images)

        def loss(params):
            logits, updates = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2), (logits, updates)

        _, backward, others = jax.vjp(loss, variables["params"], has_aux=True)
        kept.append(size(backward))
        return variables, backward(1.0), others

    results = [run(network("implicit_rd", (4, 8), 3, steps_per_block=2, remat=remat)) for remat in (False, True)]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.2 * kept[0]


def test_remat_keeps_a_tenth_of_what_network_a_keeps():
    """It needs a third more operations; the network is only traced, and a trace stores what any platform would."""
    images = jax.ShapeDtypeStruct((100, 32, 32, 3), jnp.float32)

    def traced(net):
        """Returns the bytes stored for the backward pass, and the operations of the gradient."""
        shapes = jax.eval_shape(net.init, jax.random.key(1), images)
        params, statistics = shapes["params"], shapes["batch_stats"]

        def gradient(params, statistics, images):
            def loss(params):
                variables = {"params": params, "batch_stats": statistics}
                return jnp.sum(net.apply(variables, images, train=True, mutable=["batch_stats"])[0] ** 2)

            _, backward = jax.vjp(loss, params)
            kept.append(size(backward))
            return backward(1.0)

        kept = []
        cost = jax.jit(gradient).lower(params, statistics, images).cost_analysis()
        return kept[0], cost["flops"]

    (all_kept, once), (kept, twice) = (traced(network("implicit_rd", "A", 10, remat=remat)) for remat in (False, True))
    assert kept / all_kept < 0.12
    assert 1.25 < twice / once < 1.4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("architecture", ["explicit_rd", "implicit_rd", "circulant_rd", "implicit_circulant_rd"])
def test_refining_time_converges_in_first_order(architecture):
    """From N steps of h to 2N of h/2 and 4N of h/4, with repeated weights and frozen normalisation, changes halve."""
    images = jax.random.uniform(jax.random.key(0), (2, 8, 6, 3), jnp.float64)

    def net(refinement):
        return network(architecture, (4, 8), 3, h=0.05 / refinement, steps_per_block=refinement, dtype=jnp.float64)

    variables = jax.jit(net(1).init)(jax.random.key(1), images)
    variables["params"] = jax.tree.map(  # doubles the stencils, so that diffusion has an effect
        lambda x: 2 * x if x.ndim == 3 else x, variables["params"]
    )

    def repeated(tree, refinement):
        """Returns the weights of the fine network, in which each coarse step is repeated `refinement` times."""
        fine = {}
        for name, leaf in tree.items():
            block, _, step = name.partition("_step")
            names = (
                [f"{block}_step{(int(step) - 1) * refinement + i + 1}" for i in range(refinement)] if step else [name]
            )
            fine |= dict.fromkeys(names, leaf)
        return fine

    def logits(refinement):
        fine = {kind: repeated(tree, refinement) for kind, tree in variables.items()}
        return jax.jit(net(refinement).apply)(fine, images)

    results = [logits(2**i) for i in range(3)]
    changes = [float(jnp.linalg.norm(b - a)) for a, b in itertools.pairwise(results)]
    assert changes[0] > changes[1] > 1e-5
    np.testing.assert_allclose(np.log2(changes[0] / changes[1]), 1, atol=0.15)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_report_the_symbol_of_their_convolutions(architecture):
    """`step.symbol(grid)` is K̂ of the operator with the step's weights, as impulse responses give it."""
    grid, c = (4, 5), 3
    step = ARCHITECTURES[architecture]()
    variables = step.init(jax.random.key(0), jnp.zeros((1, *grid, c)), train=False)
    weights, λ = variables["params"], step.bind(variables).symbol(grid)
    operators = {
        "resnet": [partial(lowcost.fully_coupled, weights.get(f"stencil{i}")) for i in (1, 2)],
        "linear_mix": [
            partial(lowcost.linear_mix, weights.get(f"stencil{i}"), weights.get(f"matrix{i}")) for i in (1, 2)
        ],
    }
    if architecture in operators:
        expected = [analysis.transfer_matrix(operator, grid, c) for operator in operators[architecture]]
        np.testing.assert_allclose(np.swapaxes(λ, -2, -1), expected, atol=1e-5)
    elif "circulant" in architecture:
        operator = partial(lowcost.circulant, weights["shared_stencil"] / np.sqrt(c))
        expected = analysis.spectrum(operator, grid, c)
        np.testing.assert_allclose(np.sort(np.abs(λ), -1), np.sort(np.abs(expected), -1), atol=1e-5)
    else:
        expected = analysis.transfer_matrix(partial(lowcost.depthwise, weights["stencil"]), grid, c)
        np.testing.assert_allclose(λ, np.diagonal(expected, axis1=-2, axis2=-1), atol=1e-5)


def test_a_stencil_of_two_points_does_not_reach_far():
    with pytest.raises(ValueError, match="kernel_size must be at least 3 with a reach above 0, got 2"):
        network("implicit_rd", (2, 4), 3, kernel_size=2, reach=4.0)


def test_a_stencil_of_one_point_has_no_zero_mean():
    with pytest.raises(ValueError, match="kernel_size must be at least 2 with zero_mean, got 1; a single weight"):
        network("implicit_rd", (2, 4), 3, kernel_size=1, zero_mean=True)


@pytest.mark.parametrize("step", [ImplicitRDStep, ImplicitCirculantRDStep])
def test_zero_mean(step):
    """The step is that of the stencil minus its average, also at inference; its diffusion keeps each channel's mean."""
    y = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    free, projected = step(h=2.0), step(h=2.0, zero_mean=True)
    variables = free.init(jax.random.key(1), y, train=False)
    (name,) = set(variables["params"]) - {"reaction"}
    θ = variables["params"][name]
    centred = {**variables, "params": {**variables["params"], name: θ - θ.mean((0, 1), keepdims=True)}}
    got = projected.apply(variables, y, train=False)
    np.testing.assert_array_equal(got, free.apply(centred, y, train=False))
    np.testing.assert_allclose(ops.run(projected.bind(variables).operations((6, 5)), y), got, atol=1e-5)
    np.testing.assert_allclose(projected.bind(variables).symbol((6, 5))[0, 0], 0, atol=1e-6)
    reaction = projected.bind(variables).reaction(y, train=False)
    np.testing.assert_allclose(got.mean((1, 2)), (y + 2 * reaction).mean((1, 2)), atol=1e-5)
    assert not np.allclose(got, free.apply(variables, y, train=False), atol=1e-3)
