"""Exported files, by another runtime, say what the network says."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_digits

from lowcost.deploy import fold, to_onnx, to_stablehlo, truncate
from lowcost.nn import ARCHITECTURES

OPERATORS = {
    *("Add", "AveragePool", "Cast", "Concat", "Conv", "Gemm", "MatMul", "Mul", "Pad", "Reciprocal", "ReduceMean"),
    *("Relu", "Reshape", "Slice", "Sub", "Transpose"),
}


@pytest.fixture(scope="module")
def digits():
    """Real images, [360, 12, 12, 1]."""
    images = load_digits().images[-360:, ..., None].astype(np.float32) / 16
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answer(model, images):
    return session(model).run(None, {"images": images})[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_onnx_and_stablehlo_of_every_architecture(trained, digits, architecture):
    """To 1e-4 on real images, one, 37 and all, and the same class for each; standard operators only."""
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
    for count in (1, 37, 360):
        for got in (onnx_session.run(None, {"images": digits[:count]})[0], np.asarray(call(digits[:count]))):
            np.testing.assert_allclose(got, want[:count], atol=1e-4)
            np.testing.assert_array_equal(got.argmax(1), want[:count].argmax(1))


@pytest.mark.parametrize(
    ("architecture", "image_shape"),
    [("implicit_rd", (12, 3)), ("circulant_rd", (6, 10, 2)), ("implicit_circulant_rd", (6, 6, 8, 1))],
)
def test_onnx_of_other_grids(trained, architecture, image_shape):
    folded = fold(*trained(architecture, image_shape), image_shape)
    images = np.random.default_rng(0).uniform(size=(3, *image_shape)).astype(np.float32)
    np.testing.assert_allclose(answer(to_onnx(folded), images), jax.jit(folded)(images), atol=1e-4)


def test_onnx_of_stencils_in_place_of_filters(trained, digits):
    truncated = truncate(fold(*trained("implicit_rd", (12, 12, 1)), (12, 12, 1)), 0.05)
    model = to_onnx(truncated)
    assert "MatMul" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(answer(model, digits[:5]), jax.jit(truncated)(digits[:5]), atol=1e-4)


def test_eight_bits_are_smaller_and_near(trained, digits):
    """The weights' share of the file falls to a quarter; every weight moves by at most half a step of its channel."""
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
    """Network A, 101,066 weights: with 12 filters half as much again, and hardly larger for larger images."""
    small, large = (
        to_onnx(fold(*trained("implicit_rd", shape, width="A", steps_per_block=4), shape)).ByteSize()
        for shape in ((32, 32, 3), (96, 96, 3))
    )
    assert small < 600_000
    assert large < 700_000
    # R and Rᵀ of three sizes, 8 (1 + 1/4 + 1/16) n² bytes, and the columns of R that the stencils' symbols need
    assert 10.5 < (large - small) / (96**2 - 32**2) < 11.5


def test_the_checker_is_asked(trained, monkeypatch):
    def refuse(model, full_check):
        raise onnx.checker.ValidationError("as if")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError):
        to_onnx(fold(*trained("mobilenet", (8, 8, 1)), (8, 8, 1)))
