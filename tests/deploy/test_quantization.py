"""Tests networks with 8-bit integers: what is rounded, how far the logits move, and what the file holds."""

from functools import partial

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from cases import QUICK
from onnx_models import answer

from lowcost.deploy import fold, quantize, to_onnx
from lowcost.deploy.folding import Folded, FoldedLayer
from lowcost.nn.operations import Concatenate, Convolution, Depthwise, Pointwise, Quantize, Relu, Sum

jit = partial(jax.jit, compiler_options=QUICK)
SHAPE = (8, 6, 2)
IMAGES = np.random.default_rng(0).uniform(size=(64, *SHAPE)).astype(np.float32)
PRODUCTS = Convolution | Depthwise | Pointwise


def chains(operations):
    """Yields the operations, and those of every branch."""
    yield operations
    for operation in operations:
        if isinstance(operation, Sum | Concatenate):
            for branch in operation.branches:
                yield from chains(branch)


@pytest.fixture(params=["implicit_rd", "linear_mix", "mobilenet"])
def both(request, trained):
    """Returns the folded network, and the same network with roundings."""
    folded = fold(*trained(request.param, SHAPE, steps_per_block=2), SHAPE)
    return folded, quantize(folded, IMAGES)


def test_every_product_stands_between_roundings(both):
    """No ReLU directly follows a product, because the rounding clips."""
    folded, rounded = both
    seen = 0
    for layer in rounded.layers:
        for operations in chains(layer.operations):
            for i, operation in enumerate(operations):
                if isinstance(operation, PRODUCTS):
                    seen += 1
                    assert isinstance(operations[i - 1], Quantize)
                    assert isinstance(operations[i + 1], Quantize)
                assert not isinstance(operation, Relu) or not isinstance(operations[i - 1], PRODUCTS)
    counts = [isinstance(x, PRODUCTS) for layer in folded.layers for chain in chains(layer.operations) for x in chain]
    assert seen == sum(counts) > 5


def test_the_logits_are_near_those_of_the_network(both):
    """Logits of JAX and of onnxruntime, which also rounds the weights, differ by less than 5 % for any batch."""
    folded, rounded = both
    want = np.asarray(jit(folded)(IMAGES))
    model = to_onnx(rounded, bits=8)
    answers = [answer(model, images) for images in (IMAGES, IMAGES[:1], IMAGES[:0])]
    assert answers[2].shape == (0, 5)
    np.testing.assert_allclose(answers[1], answers[0][:1], atol=0.02 * np.abs(want).max())
    for got in (jit(rounded)(IMAGES), answers[0]):
        assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == sum(
        isinstance(x, Quantize) for layer in rounded.layers for chain in chains(layer.operations) for x in chain
    )


def test_runtimes_compute_the_products_in_integers(trained, tmp_path):
    """onnxruntime fuses each Gemm with the roundings around it."""
    folded = fold(*trained("implicit_rd", SHAPE, steps_per_block=2), SHAPE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "net.onnx")
    model = to_onnx(quantize(folded, IMAGES), bits=8)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("QGemm") == 5  # the reactions of four steps, and the classifier
    assert "Gemm" not in kinds
    assert "Reciprocal" not in kinds  # the symbols of the filters are constants


def test_a_bias_fits_into_its_integers():
    """A channel whose weights are nearly 0 keeps its bias."""
    weights = np.float32([[1, 1e-12], [1, 1e-12]])
    layer = FoldedLayer("product", (Pointwise(weights, np.float32([0.1, 1])),), 2.0)
    rounded = quantize(Folded((layer,), SHAPE), IMAGES)
    np.testing.assert_allclose(answer(to_onnx(rounded, bits=8), IMAGES)[..., 1], 1, atol=0.02)


def test_a_rounding_keeps_zero_and_its_range():
    rounding = Quantize(0.5, 3)
    np.testing.assert_array_equal(rounding(np.float32([-9, -1.6, -0.2, 0, 0.3, 200])), [-1.5, -1.5, 0, 0, 0.5, 126])


def test_bad_images_are_refused(trained):
    folded = fold(*trained("mobilenet", SHAPE), SHAPE)
    for images, message in (
        (IMAGES[:0], "images must be at least one, got none"),
        (IMAGES[..., :1], "images must be .*, the shape for which the network was folded"),
        (IMAGES * np.nan, "must be finite, got features with NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(folded, images)
