"""Networks that classify every pixel: exported, bounded, truncated and saved as the classifiers of images are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from cases import QUICK

import lowcost
from lowcost.deploy import certified, fold, to_onnx, to_stablehlo, truncate
from lowcost.nn import network, network_cost, stability_report

jit = partial(jax.jit, compiler_options=QUICK)
CASES = [("circulant_rd", (12, 2)), ("explicit_rd", (5, 6, 5, 1))]


@pytest.fixture(params=CASES, ids=str)
def pixels(request, trained):
    """Network, variables, image shape, three images and their logits."""
    architecture, shape = request.param
    net, variables = trained(architecture, shape, head="pixels")
    images = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    return net, variables, shape, images, np.asarray(jit(net.apply)(variables, images))


def test_exported_forms_agree_and_shifts_move_the_logits(pixels):
    """Folded to 1e-5, ONNX and StableHLO to 1e-4. Without poolings, a network commutes with every periodic shift."""
    net, variables, shape, images, want = pixels
    assert want.shape == (3, *shape[:-1], 5)
    folded, largest = fold(net, variables, shape), np.abs(want).max()
    np.testing.assert_allclose(jit(folded)(images), want, atol=1e-5 * largest)
    model = to_onnx(folded)
    assert [x.dim_value for x in model.graph.output[0].type.tensor_type.shape.dim] == [0, *shape[:-1], 5]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": images})[0], want, atol=1e-4 * largest)
    assert session.run(None, {"images": images[:0]})[0].shape == (0, *shape[:-1], 5)
    exported = jax.export.deserialize(bytearray(to_stablehlo(folded)))
    np.testing.assert_allclose(jit(exported.call)(images), want, atol=1e-4 * largest)
    moved = jit(net.apply)(variables, np.roll(images, (1, 2), (1, images.ndim - 2)))
    np.testing.assert_allclose(moved, np.roll(want, (1, 2), (1, images.ndim - 2)), atol=1e-4 * largest)


def test_no_perturbation_grows_more_than_the_bound(pixels):
    """‖J v‖ ≤ bound · ‖v‖ at random images, J the Jacobian, along a random v and along JᵀJ v."""
    net, variables, shape, images, _ = pixels
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


def test_a_truncated_network_never_errs_more_than_its_certificate(trained):
    net, variables = trained("implicit_rd", (16, 16, 2), h=0.3, head="pixels")
    folded = fold(net, variables, (16, 16, 2))
    images = np.random.default_rng(0).uniform(size=(4, 16, 16, 2)).astype(np.float32)
    result = jit(partial(certified, truncate(folded, 0.03)))(images)
    errors = np.linalg.norm(np.reshape(result.logits - jit(folded)(images), (4, -1)), axis=1)
    assert np.all(errors > 0)
    assert np.all(errors <= result.error)


@pytest.mark.parametrize("architecture", ["mobilenet", "implicit_rd"])
def test_weights_are_those_of_the_classifier(architecture):
    """Names and shapes; and every layer computes as many points as the image has."""
    shape = (16, 12, 3)
    of_image, of_pixels = (network(architecture, (4, 8, 16), 5, head=head) for head in ("class", "pixels"))
    shapes = [jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape))) for net in (of_image, of_pixels)]
    assert shapes[0] == shapes[1]
    costs = [network_cost(net, shape) for net in (of_image, of_pixels)]
    assert costs[0].weights == costs[1].weights
    assert costs[0].multiply_adds < costs[1].multiply_adds
    assert of_image != of_pixels


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


def test_a_saved_network_comes_back_with_its_head(trained, tmp_path):
    """Only such files have the newest format, which earlier versions refuse; the task must fit the head."""
    about = {"classes": [*"abcde"], "image_shape": (8, 6, 2)}
    for head, task, number in (("class", "classes", 1), ("pixels", "pixels", 3)):
        net, variables = trained("implicit_rd", (8, 6, 2), head=head)
        lowcost.save(tmp_path / head, net, variables, **about, task=task)
        loaded = lowcost.load(tmp_path / head)
        assert (loaded.net, loaded.task) == (net, task)
        assert f'"format":"{number}"'.encode() in (tmp_path / head).read_bytes()
        other = "classes" if head == "pixels" else "pixels"
        with pytest.raises(ValueError, match=f"task must fit the network's head '{head}', got '{other}'; choose"):
            lowcost.save(tmp_path / "refused", net, variables, **about, task=other)
