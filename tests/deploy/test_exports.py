"""Exported files, in another runtime, compute what the network computes."""

import itertools

import jax
import numpy as np
import onnx
import pytest
from onnx_models import answer, session
from sklearn.datasets import load_digits

from lowcost.deploy import fold, to_onnx, to_stablehlo, truncate
from lowcost.deploy.folding import Folded, FoldedLayer
from lowcost.nn import ARCHITECTURES
from lowcost.nn.operations import Convolution, GlobalAveragePool, Pointwise

OPERATORS = {
    *("Add", "AveragePool", "Cast", "Concat", "Conv", "Gather", "Gemm", "MatMul", "Mul", "Reciprocal"),
    *("ReduceSum", "Relu", "Reshape", "Slice", "Sub", "Transpose"),
}


@pytest.fixture(scope="module")
def digits():
    """Returns real images [360, 12, 12, 1]."""
    images = load_digits().images[-360:, ..., None].astype(np.float32) / 16
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_onnx_and_stablehlo_of_every_architecture(trained, digits, architecture):
    """Logits agree to 1e-4 on 1 and 360 real images, with equal classes; all operators are standard."""
    net, variables = trained(architecture, (12, 12, 1))
    folded = fold(net, variables, (12, 12, 1))
    want = np.asarray(jax.jit(net.apply)(variables, digits))
    model = to_onnx(folded, metadata={"classes": "[]"})
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert {(x.domain, x.version) for x in model.opset_import} == {("", 21)}
    assert model.metadata_props[0].key == "classes"
    batch, *image = model.graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param, [x.dim_value for x in image]) == ("batch", [12, 12, 1])
    exported = jax.export.deserialize(bytearray(to_stablehlo(folded)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    onnx_session, call = session(model), jax.jit(exported.call)
    for count in (1, 360):
        for got in (onnx_session.run(None, {"images": digits[:count]})[0], np.asarray(call(digits[:count]))):
            np.testing.assert_allclose(got, want[:count], atol=1e-4)
            np.testing.assert_array_equal(got.argmax(1), want[:count].argmax(1))


@pytest.mark.parametrize(
    ("architecture", "image_shape"),
    [("implicit_rd", (12, 3)), ("implicit_circulant_rd", (6, 6, 8, 1))],
)
def test_onnx_of_other_grids(trained, architecture, image_shape):
    folded = fold(*trained(architecture, image_shape), image_shape)
    images = np.random.default_rng(0).uniform(size=(3, *image_shape)).astype(np.float32)
    np.testing.assert_allclose(answer(to_onnx(folded), images), jax.jit(folded)(images), atol=1e-4)
    assert answer(to_onnx(folded), images[:0]).shape == (0, 5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_batch_and_older_opsets(trained, digits, architecture):
    """Exact and truncated files of 32 and 8 bits give no logits for no images, and equal logits with an older opset."""
    exact = fold(*trained(architecture, (12, 12, 1)), (12, 12, 1))
    for folded, bits in itertools.product((exact, truncate(exact, 0.05)), (32, 8)):
        newest = session(to_onnx(folded, bits=bits))
        empty = newest.run(None, {"images": digits[:0]})[0]
        assert (empty.shape, empty.dtype) == ((0, 5), np.float32)
        want = newest.run(None, {"images": digits[:3]})[0]
        opset, ir_version = (17, 8) if bits == 32 else (13, 7)
        model = to_onnx(folded, bits=bits, opset=opset)
        assert [x.version for x in model.opset_import] == [opset]
        assert model.ir_version == ir_version
        older = session(model)
        np.testing.assert_allclose(older.run(None, {"images": digits[:3]})[0], want, rtol=1e-6, atol=1e-6)
        assert older.run(None, {"images": digits[:0]})[0].shape == (0, 5)


@pytest.mark.parametrize("opset", [12, 22])
def test_an_opset_that_cannot_be_written_is_refused(trained, opset):
    with pytest.raises(ValueError, match=f"opset must be from 13 to 21, got {opset}; choose"):
        to_onnx(fold(*trained("mobilenet", (8, 8, 1)), (8, 8, 1)), opset=opset)


def test_padding_may_be_wider_than_the_images():
    """A stencil of 9 points on a grid of 3 meets each point three times."""
    stencil = np.random.default_rng(0).normal(size=(9, 1, 2)).astype(np.float32)
    layers = (FoldedLayer("wide", (Convolution(stencil, np.zeros(2, np.float32)), GlobalAveragePool()), 1.0),)
    images = np.random.default_rng(1).uniform(size=(4, 3, 1)).astype(np.float32)
    short = stencil.reshape(3, 3, 1, 2).sum(0)  # tap j meets the point (j - 4) mod 3 = (j - 1) mod 3 from its own
    reference = Folded(
        (FoldedLayer("short", (Convolution(short, np.zeros(2, np.float32)), GlobalAveragePool()), 1.0),), (3, 1)
    )
    np.testing.assert_allclose(answer(to_onnx(Folded(layers, (3, 1))), images), reference(images), atol=1e-5)


def test_onnx_of_stencils_in_place_of_filters(trained, digits):
    truncated = truncate(fold(*trained("implicit_rd", (12, 12, 1)), (12, 12, 1)), 0.05)
    model = to_onnx(truncated)
    assert not {"MatMul", "Reciprocal"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(answer(model, digits[:5]), jax.jit(truncated)(digits[:5]), atol=1e-4)


def test_eight_bits_move_weights_by_at_most_half_a_step():
    """A step is 1/127 of the largest weight of the channel."""
    matrix = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    model = to_onnx(Folded((FoldedLayer("product", (Pointwise(matrix),), 1.0),), (1, 40)), bits=8)
    got = answer(model, np.eye(40, dtype=np.float32)[:, None])[:, 0]
    assert np.abs(got - matrix).max() > 0
    assert (np.abs(got - matrix) <= np.abs(matrix).max(0) / 254 + 1e-6).all()


def test_eight_bits_are_smaller_and_near(trained, digits):
    """The stored weights shrink below 0.4 of their size, and the logits change by less than 10 %."""
    folded = fold(*trained("implicit_rd", (12, 12, 1), width=(32, 64)), (12, 12, 1))
    whole, eight = to_onnx(folded), to_onnx(folded, bits=8)

    def stored(model):
        return sum(len(x.raw_data) for x in model.graph.initializer)

    assert stored(eight) < 0.4 * stored(whole)
    logits = answer(whole, digits)
    assert 0 < np.abs(answer(eight, digits) - logits).max() < 0.1 * np.abs(logits).max()
    with pytest.raises(ValueError, match="bits must be 8 or 32, got 4"):
        to_onnx(folded, bits=4)


def test_a_file_holds_little_but_weights(trained):
    """The file of network A with 101,066 weights has less than 500 kB, and less than 550 kB for larger images."""
    small, large = (
        to_onnx(fold(*trained("implicit_rd", shape, width="A", steps_per_block=4), shape)).ByteSize()
        for shape in ((32, 32, 3), (96, 96, 3))
    )
    assert small < 500_000
    assert large < 550_000
    # R of three sizes, 4 (1 + 1/4 + 1/16) n² bytes, and the columns of R that the stencils' symbols need
    assert 5.25 < (large - small) / (96**2 - 32**2) < 6


def test_the_checker_is_asked(trained, monkeypatch):
    def refuse(model, full_check):
        raise onnx.checker.ValidationError("as if")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError):
        to_onnx(fold(*trained("mobilenet", (8, 8, 1)), (8, 8, 1)))
