"""Networks that classify every pixel are exported, bounded, truncated and saved as classifiers of images are."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import QUICK
from onnx_models import answer

import lowcost
from lowcost.deploy import certified, fold, to_onnx, to_stablehlo, truncate
from lowcost.nn import ImplicitRDStep, Network, bound_layers, network, network_cost, stability_report

jit = partial(jax.jit, compiler_options=QUICK)
DECODER = {"decoder": True, "width": (2, 4, 8)}
CASES = [
    ("circulant_rd", (12, 2), {}),
    ("explicit_rd", (5, 6, 5, 1), {}),
    ("implicit_rd", (12, 20, 2), DECODER),
    ("linear_mix", (5, 6, 5, 1), {"decoder": True}),
]


@pytest.fixture(params=CASES, ids=str)
def pixels(request, trained):
    """Returns network, variables, image shape and three images."""
    architecture, shape, options = request.param
    net, variables = trained(architecture, shape, head="pixels", **options)
    images = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    return net, variables, shape, images


def test_exported_forms_agree_and_shifts_move_the_logits(pixels):
    """Folding agrees to 1e-5, files agree to 1e-4. Periodic shifts by whole windows shift the logits, if they exist."""
    net, variables, shape, images = pixels
    apply = jit(net.apply)
    want = np.asarray(apply(variables, images))
    assert want.shape == (3, *shape[:-1], 5)
    folded, largest = fold(net, variables, shape), np.abs(want).max()
    np.testing.assert_allclose(jit(folded)(images), want, atol=1e-5 * largest)
    model = to_onnx(folded, opset=13 if net.decoder else 21)
    assert [x.dim_value for x in model.graph.output[0].type.tensor_type.shape.dim] == [0, *shape[:-1], 5]
    np.testing.assert_allclose(answer(model, images), want, atol=1e-4 * largest)
    assert answer(model, images[:0]).shape == (0, *shape[:-1], 5)
    exported = jax.export.deserialize(bytearray(to_stablehlo(folded)))
    np.testing.assert_allclose(jit(exported.call)(images), want, atol=1e-4 * largest)
    window = 2 ** (len(net.channels) - 1) if net.decoder else 1
    if all(n % window == 0 for n in shape[:-1]):
        shift, axes = (window, 2 * window), (1, images.ndim - 2)
        moved = apply(variables, np.roll(images, shift, axes))
        np.testing.assert_allclose(moved, np.roll(want, shift, axes), atol=1e-4 * largest)


def test_no_perturbation_grows_more_than_the_bound(pixels):
    """‖J v‖ ≤ bound · ‖v‖ at random images, J the Jacobian, along a random v and along JᵀJ v."""
    net, variables, shape, images = pixels
    bound = stability_report(net, variables, shape).lipschitz
    apply = partial(net.apply, variables)

    @jit
    def growth(v):
        change = jax.jvp(apply, (images,), (v,))[1]
        steepest = jax.vjp(apply, images)[1](change)[0]
        return jnp.linalg.norm(change) / jnp.linalg.norm(v), steepest

    random = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    first, steeper = growth(random)
    second, _ = growth(steeper)
    assert 0 < first < second <= bound


@pytest.mark.parametrize("decoder", [False, True])
def test_a_truncated_network_never_errs_more_than_its_certificate(trained, decoder):
    net, variables = trained("implicit_rd", (16, 16, 2), h=0.3, head="pixels", decoder=decoder)
    folded = fold(net, variables, (16, 16, 2))
    images = np.random.default_rng(0).uniform(size=(4, 16, 16, 2)).astype(np.float32)
    result = jit(partial(certified, truncate(folded, 0.03)))(images)
    errors = np.linalg.norm(np.reshape(result.logits - jit(folded)(images), (4, -1)), axis=1)
    assert np.all(errors > 0)
    assert np.all(errors <= result.error)


@pytest.mark.parametrize("architecture", ["mobilenet", "implicit_rd"])
def test_weights_are_those_of_the_classifier(architecture):
    """Both heads have weights of equal names and shapes; labelling every pixel needs more multiply-adds."""
    shape = (16, 12, 3)
    of_image, of_pixels = (network(architecture, (4, 8, 16), 5, head=head) for head in ("class", "pixels"))
    shapes = [jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape))) for net in (of_image, of_pixels)]
    assert shapes[0] == shapes[1]
    costs = [network_cost(net, shape) for net in (of_image, of_pixels)]
    assert costs[0].weights == costs[1].weights
    assert costs[0].multiply_adds < costs[1].multiply_adds
    assert of_image != of_pixels


def test_the_decoder_mirrors_the_poolings(trained):
    """Checks the grid of each block and the number of weights that the decoder adds."""
    shape, width = (16, 12, 3), {"width": (4, 8, 16), "steps_per_block": 4}
    of_image, _ = trained("implicit_rd", shape, **width)
    flat, _ = trained("implicit_rd", shape, head="pixels", **width)
    net, variables = trained("implicit_rd", shape, head="pixels", decoder=True, remat=True, **width)
    grids = {layer.name: layer.grid for layer in bound_layers(net, variables, shape)}
    blocks = ("block1", "block2", "block3", "decoder2", "decoder1")
    assert [grids[f"{name}_step1"] for name in blocks] == [(16, 12), (8, 6), (4, 3), (8, 6), (16, 12)]
    more = 8 * 4 + 16 * 8  # the expanding layers
    more += 4 * (4 * 4 + 9 * 4 + 8 * 8 + 9 * 8)  # the steps
    more += (5 * 2 + 9) * (4 - 16)  # the last connecting layer and the classifier have the first block's channels
    costs = [network_cost(x, shape) for x in (of_image, net, flat)]
    assert costs[1].weights == costs[0].weights + more
    assert costs[0].multiply_adds < costs[1].multiply_adds < costs[2].multiply_adds


@pytest.fixture
def bypassed(trained):
    """Returns a network, variables and images; the decoder's expanding layer is 0, so only the first block counts."""
    shape = (16, 16, 2)
    net, variables = trained("implicit_rd", shape, h=0.3, head="pixels", decoder=True)
    zero = jax.tree.map(np.zeros_like, variables["params"]["decoder1_expanding"])
    variables["params"] = variables["params"] | {"decoder1_expanding": zero}
    return net, variables, np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)


def test_the_bound_includes_what_the_decoder_adds(bypassed):
    """The product of the layers' bounds is 0, but the logits depend on the image."""
    net, variables, images = bypassed
    report = stability_report(net, variables, images.shape[1:])
    v = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    change = jit(lambda v: jax.jvp(partial(net.apply, variables), (images,), (v,))[1])(v)
    assert min(layer.lipschitz for layer in report.layers) == 0
    assert 0.1 < np.linalg.norm(change) / np.linalg.norm(v) <= report.lipschitz
    assert "decoder1_expanding" in str(report)
    assert str(report).count("+ earlier features") == 1


def test_the_certificate_includes_what_the_decoder_adds(bypassed):
    """Truncates only the steps before the pooling, because only their error reaches the logits."""
    net, variables, images = bypassed
    folded = fold(net, variables, images.shape[1:])
    short = truncate(folded, 0.3)
    names = [layer.name.startswith("block1_step") for layer in folded.layers]
    layers = [cut if first else layer for first, layer, cut in zip(names, folded.layers, short.layers, strict=True)]
    result = jit(partial(certified, dataclasses.replace(folded, layers=tuple(layers))))(images)
    errors = np.linalg.norm(np.reshape(result.logits - jit(folded)(images), (2, -1)), axis=1)
    assert np.all((errors > 1e-4) & (errors <= result.error))


def test_small_grids_and_bad_heads():
    """All blocks have the grid of the images, so that 5 points suffice for any number of blocks."""
    net = network("implicit_rd", (2, 4, 8, 16), 3, head="pixels", dtype=jnp.bfloat16)
    images = jnp.zeros((1, 5, 5, 1))
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((1, 5, 5, 3), jnp.float32)
    with pytest.raises(ValueError, match="at least 5 points, the size of the opening's stencil, got"):
        jax.eval_shape(net.init, jax.random.key(0), images[:, :4])
    with pytest.raises(ValueError, match=r"head must be one of 'class', 'pixels' here, got 'mask'"):
        network("implicit_rd", (4, 8), 3, head="mask")
    with pytest.raises(ValueError, match="masked must be False for the head 'pixels', got True; resample"):
        network("implicit_rd", (4, 8), 3, head="pixels", masked=True)
    with pytest.raises(ValueError, match="decoder must be False for the head 'class', got True; choose"):
        network("implicit_rd", (4, 8), 3, decoder=True)
    with pytest.raises(ValueError, match=r"decoder needs at least two blocks, .*got a width of \(4,\); add a block"):
        network("implicit_rd", (4,), 3, head="pixels", decoder=True)
    with pytest.raises(ValueError, match="decoder must be False for the head 'class', got True"):
        jax.eval_shape(
            Network(ImplicitRDStep, (4, 8), 3, decoder=True).init, jax.random.key(0), jnp.zeros((1, 9, 9, 1))
        )
    deep = network("implicit_rd", (2, 4, 8, 16), 3, head="pixels", decoder=True)
    with pytest.raises(ValueError, match="at least 17 points, because 4 blocks halve the grid 3 times"):
        jax.eval_shape(deep.init, jax.random.key(0), images)


def test_a_saved_network_comes_back_with_its_head(trained, tmp_path):
    """Only such files have the newest format, which earlier versions refuse; the task must fit the head."""
    about = {"classes": [*"abcde"], "image_shape": (8, 6, 2), "dtype": "uint8"}
    for head, task, number in (("class", "classes", 1), ("pixels", "pixels", 3)):
        net, variables = trained("implicit_rd", (8, 6, 2), head=head, decoder=head == "pixels")
        lowcost.save(tmp_path / head, net, variables, **about, task=task)
        loaded = lowcost.load(tmp_path / head)
        assert (loaded.net, loaded.task) == (net, task)
        assert f'"format":"{number}"'.encode() in (tmp_path / head).read_bytes()
        other = "classes" if head == "pixels" else "pixels"
        with pytest.raises(ValueError, match=f"task must fit the network's head '{head}', got '{other}'; choose"):
            lowcost.save(tmp_path / "refused", net, variables, **about, task=other)
