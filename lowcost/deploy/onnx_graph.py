"""A folded network of Section 4 as an ONNX graph of standard operators: Conv, MatMul, Add, Mul, Relu, pooling, Gemm.

Features are channels last as everywhere, so that most of the work is large matrix products. ONNX's Conv takes channels
first: a stencil's Conv stands between two transpositions, and the transform of an axis is a Conv of width 1. The graph
computes the symbols of the filters from their stencils, and a runtime evaluates them once, when it loads the file.
Besides the network's weights the file holds only the real bases of the transforms, about 11 n² bytes for images of
n x n pixels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowcost.arguments import ResolventBoundary
from lowcost.deploy.folding import Folded, FoldedLayer
from lowcost.extras import needs_extra
from lowcost.nn import operations as ops
from lowcost.nn.structure import chain
from lowcost.operators.boundary import MODES
from lowcost.real_dft import frequencies

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 22)
"""Versions of the operators that can be written: from 13 on the axes of ReduceSum are an input; 21 is the default."""


def to_onnx(
    folded: Folded, *, metadata: Mapping[str, str] | None = None, bits: int = 32, opset: int = OPSETS[-1]
) -> "onnx.ModelProto":
    """`images` [batch, *grid, C] → `logits` [batch, num_classes]: returns Section 4's network as ONNX model.

    With the head "pixels", `logits` are [batch, *grid, num_classes].

    Args:
        folded: from `fold` or `truncate`.
        metadata: key → text, stored in the file.
        bits: 32, or 8 to store the weights of matrices and stencils as integers with a scale for each output channel;
            the network still computes in float32.
        opset: version of the operators, 13 to 21: the same graph for older runtimes; onnxruntime 1.12 reads 17. The
            version of the file format is the oldest that has this opset.

    Returns:
        The model, checked by `onnx.checker`; an empty batch gives `logits` [0, num_classes].

    Raises:
        ImportError: the package onnx is missing.
        ValueError: bits is neither 32 nor 8, or opset is not in its range.
    """
    with needs_extra("export"):
        import onnx
    if bits not in (8, 32):
        raise ValueError(f"bits must be 8 or 32, got {bits}")
    if opset not in OPSETS:
        expected = f"opset must be from {OPSETS[0]} to {OPSETS[-1]}"
        raise ValueError(f"{expected}, got {opset}; choose one that the runtime reads")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = _Graph(onnx, bits, folded.image_shape)

    def apply(layer: FoldedLayer, y: str) -> str:
        graph.scope = layer.name
        return graph.run(layer.operations, y)

    y = chain(folded.layers, "images", apply, partial(graph.alike, "Add"))
    y = graph.viewed(y, (*graph.grid, graph.views[y][-1]))
    graph.nodes[-1].output[0] = "logits"
    images = helper.make_tensor_value_info("images", number, ["batch", *folded.image_shape])
    logits = helper.make_tensor_value_info("logits", number, ["batch", *graph.views[y]])
    proto = helper.make_graph(graph.nodes, "lowcost", [images], [logits], list(graph.constants.values()))
    operators = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(operators)
    model = helper.make_model(proto, opset_imports=operators, ir_version=oldest, producer_name="lowcost")
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """The nodes and constants so far. A method that adds a node returns the name of its result.

    Attributes:
        views: {result: its shape without the batch}. An operation returns features in the shape in which it computes
            them, [-1, *grid, C] or [-1, C]; `viewed` reshapes them where another shape is needed.
    """

    def __init__(self, onnx: Any, bits: int, image_shape: tuple[int, ...]):
        self.onnx, self.bits, self.grid = onnx, bits, image_shape[:-1]
        self.nodes: list[Any] = []
        self.constants: dict[Any, Any] = {}
        self.scope = ""
        self.views = {"images": image_shape}

    def node(self, kind: str, *inputs: str | ArrayLike, view: Sequence[int] | None = None, **attributes: Any) -> str:
        """Adds a node whose result is [-1, *view]; inputs that are no names are constants."""
        name = f"{self.scope}/{kind}{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], name, **attributes))
        if view is not None:
            self.views[name] = tuple(view)
        return name

    def constant(self, value: ArrayLike) -> str:
        """One constant for all places that need the same: int8, int64 or float32."""
        array = np.ascontiguousarray(value)
        if array.dtype != np.int8:
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, np.shape(value), array.tobytes())
        if key not in self.constants:
            name = f"constant{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return self.constants[key].name

    def weight(self, array: NDArray[np.float32], axis: int) -> str:
        """A learned constant; with 8 bits, integers and a scale for each index of `axis`."""
        if self.bits == 32:
            return self.constant(array)
        largest = np.abs(array).max(tuple(i for i in range(array.ndim) if i != axis), keepdims=True)
        scale = np.where(largest == 0, 1, largest / 127)
        return self.node("Mul", self.node("Cast", np.round(array / scale).astype(np.int8), to=1), scale)

    def viewed(self, y: str, view: Sequence[int]) -> str:
        """y as [-1, *view]."""
        return y if self.views[y] == tuple(view) else self.node("Reshape", y, [-1, *view], view=view)

    def alike(self, kind: str, first: str, *others: str | ArrayLike) -> str:
        """A node that acts point by point, in the view of its first input."""
        view = self.views[first]
        return self.node(kind, first, *(self.viewed(x, view) if isinstance(x, str) else x for x in others), view=view)

    def run(self, operations: Sequence[ops.Operation], y: str) -> str:
        return reduce(lambda y, operation: self.add(operation, y), operations, y)

    def add(self, operation: ops.Operation, y: str) -> str:
        match operation:
            case ops.Convolution(stencil, bias):
                return self.convolve(y, np.moveaxis(stencil, (-1, -2), (0, 1)), bias)
            case ops.Depthwise(stencil, bias, boundary=boundary) if stencil[..., 0].size > 1:
                return self.convolve(y, np.moveaxis(stencil, -1, 0)[:, None], bias, stencil.shape[-1], boundary)
            case ops.Depthwise(scale, bias) | ops.Scale(scale, bias):
                y = self.viewed(y, (*self.grid, scale.shape[-1]))
                return self.alike("Add", self.alike("Mul", y, scale.reshape(-1)), bias)
            case ops.Pointwise(matrix, bias):  # one product for all pixels, with which runtimes fuse the bias and ReLU
                y = self.viewed(y, matrix.shape[:1])
                return self.node("Gemm", y, self.weight(matrix, 1), bias, view=matrix.shape[1:])
            case ops.Filter():
                return self.filter(operation, y)
            case ops.Relu():
                return self.alike("Relu", y)
            case ops.AveragePool():
                return self.average_pool(y)
            case ops.GlobalAveragePool():
                y = self.viewed(y, (*self.grid, self.views[y][-1]))
                axes = list(range(1, len(self.grid) + 1))
                total, points = self.node("ReduceSum", y, axes, keepdims=0, view=self.views[y][-1:]), self.grid
                self.grid = ()
                return self.alike("Mul", total, 1 / math.prod(points))
            case ops.Upsample(grid):
                y = self.viewed(y, (*self.grid, self.views[y][-1]))
                for axis, n in enumerate(grid, 1):
                    view = (*grid[:axis], *self.grid[axis:], self.views[y][-1])
                    y = self.node("Gather", y, np.arange(n) // 2, axis=axis, view=view)
                self.grid = grid
                return y
            case ops.Sum(branches):
                terms = [self.run(branch, y) for branch in branches]
                return reduce(lambda a, b: self.alike("Add", a, b), reversed(terms))
            case ops.Concatenate(branches):
                results = [self.run(branch, y) for branch in branches]
                results = [self.viewed(x, (*self.grid, self.views[x][-1])) for x in results]
                c = sum(self.views[x][-1] for x in results)
                return self.node("Concat", *results, axis=-1, view=(*self.grid, c))
        raise TypeError(f"operation must be one of lowcost.nn.operations, got {type(operation).__name__}")

    def convolve(
        self,
        y: str,
        weight: NDArray[np.float32],
        bias: ArrayLike,
        groups: int = 1,
        boundary: ResolventBoundary = "periodic",
    ) -> str:
        y = self.viewed(y, (*self.grid, weight.shape[1] * groups))
        for axis, (n, m) in enumerate(zip(self.grid, weight.shape[2:], strict=True), 1):
            # Not Pad, whose mode "wrap" needs opset 19 and, in onnxruntime, at least one image; Gather is also faster.
            y = self.node("Gather", y, np.pad(np.arange(n), (m // 2, m - 1 - m // 2), MODES[boundary]), axis=axis)
        y = self.node("Conv", self.channels_first(y), self.weight(weight, 0), bias, group=groups)
        return self.channels_last(y, len(weight))

    def channels_first(self, y: str) -> str:
        last = len(self.grid) + 1
        return self.node("Transpose", y, perm=[0, last, *range(1, last)])

    def channels_last(self, y: str, channels: int) -> str:
        return self.node("Transpose", y, perm=[0, *range(2, len(self.grid) + 2), 1], view=(*self.grid, channels))

    def average_pool(self, y: str) -> str:
        c, two = self.views[y][-1], [2] * len(self.grid)
        y = self.channels_first(self.viewed(y, (*self.grid, c)))
        odd = [n % 2 for n in self.grid]
        padding = {"pads": [0] * len(odd) + odd} if any(odd) else {}  # which the averages do not count
        self.grid = tuple((n + 1) // 2 for n in self.grid)
        return self.channels_last(self.node("AveragePool", y, kernel_shape=two, strides=two, **padding), c)

    def filter(self, operation: ops.Filter, y: str) -> str:
        """Rᵀ Σ_S A_S ⊙ flip_S(R y)."""
        shape = [*operation.grid, operation.stencil.shape[-1]]
        bases = list(enumerate(operation.bases))
        for axis, basis in bases:
            y = self.along(basis, y, shape, axis)
        y = self.viewed(y, shape)
        products = [self.alike("Mul", self.flip(y, subset), part) for subset, part in self.parts(operation).items()]
        y = reduce(lambda a, b: self.alike("Add", a, b), products)
        for axis, basis in reversed(bases):
            y = self.along(basis.T, y, shape, axis)
        return self.viewed(y, shape)

    def along(self, matrix: NDArray[Any], y: str, shape: Sequence[int], axis: int) -> str:
        """Σ_j matrix[i, j] y[..., j, ...] along an axis of y [-1, *shape], no axis moved."""
        n, m = matrix.shape
        if axis + 1 == len(shape):
            return self.node("MatMul", self.viewed(y, shape), matrix.T, view=(*shape[:-1], n))
        behind = math.prod(shape[axis + 1 :])
        # Not MatMul with the matrix on the left, which refuses an empty batch in onnxruntime 1.27 and older.
        return self.node("Conv", self.viewed(y, (m, behind)), matrix[..., None], view=(n, behind))

    def flip(self, y: str, subset: tuple[int, ...]) -> str:
        if not subset:
            return y
        last, first = [-1] * len(subset), [np.iinfo(np.int64).min] * len(subset)
        return self.node("Slice", y, last, first, [axis + 1 for axis in subset], last, view=self.views[y])

    def parts(self, operation: ops.Filter) -> dict[tuple[int, ...], str]:
        """{S: A_S}, computed in the graph: R(h|λ|²) at the frequencies ±k of each axis, and its even and odd parts.

        What is mirrored has only the part that is even in each frequency.
        """
        rank = len(operation.axes)
        patterns = list(itertools.product((1,), *[(1, -1)] * (rank - 1)))  # k and -k are alike
        factors = [self.factor(operation, signs) for signs in patterns]
        parts = {}
        sizes = (0,) if operation.mirrored else range(0, rank + 1, 2)
        for subset in (s for size in sizes for s in itertools.combinations(range(rank), size)):
            parity = [(-1) ** (len(subset) // 2) * math.prod(signs[i] for i in subset) for signs in patterns]
            terms = [self.alike("Mul", x, p / len(patterns)) for x, p in zip(factors, parity, strict=True)]
            parts[subset] = reduce(lambda a, b: self.alike("Add", a, b), terms)
        return parts

    def factor(self, operation: ops.Filter, signs: tuple[int, ...]) -> str:
        """R(h|λ|²) with λ_k = Σ_j θ_j exp(2πi s·k·j / period), k in the order of the basis."""
        shape = list(operation.stencil.shape)
        re, im = self.weight(operation.stencil[None], operation.stencil.ndim), ""
        self.views[re] = tuple(shape)
        for axis, (n, period, sign) in enumerate(zip(operation.axes, operation.period, signs, strict=True)):
            k = np.arange(n) if axis < operation.mirrored else frequencies(n)
            phase = 2 * np.pi * (sign * np.outer(k, np.arange(shape[axis])) % period) / period
            cos, sin = np.cos(phase), np.sin(phase)
            turned = [self.along(matrix, re, shape, axis) for matrix in (cos, sin)]
            if im:
                real, imaginary = (self.along(matrix, im, shape, axis) for matrix in (sin, cos))
                turned = [self.alike("Sub", turned[0], real), self.alike("Add", turned[1], imaginary)]
            re, im = turned
            shape[axis] = n
        squared_modulus = self.alike("Add", self.alike("Mul", re, re), self.alike("Mul", im, im))
        z = self.alike("Mul", self.viewed(squared_modulus, shape), operation.h)
        if operation.integrator == "forward_euler":
            return self.node("Sub", 1.0, z, view=shape)
        return self.alike("Reciprocal", self.alike("Add", z, 1.0))
