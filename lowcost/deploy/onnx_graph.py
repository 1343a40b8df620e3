"""Writes a folded network of Section 4 as an ONNX graph of standard operators, such as Conv, MatMul and Relu.

Features are channels last as everywhere, so that most of the work is large matrix products. ONNX's Conv takes channels
first: a stencil's Conv stands between two transpositions, and the transform of an axis is a Conv of width 1. The graph
computes the symbols of the filters from their stencils, and a runtime evaluates them once, when it loads the file.
Besides the network's weights the file holds only the real bases of the transforms, about 6 n² bytes for images of
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
        self.scales: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str | ArrayLike, view: Sequence[int] | None = None, **attributes: Any) -> str:
        """Adds a node whose result is [-1, *view]; inputs that are no names are constants."""
        short, label = f"{len(self.nodes):x}", f"{self.scope}/{kind}{len(self.nodes)}"
        name, label = (short, "") if self.bits == 8 else (label, label)  # names take a quarter of a small file
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], label, **attributes))
        if view is not None:
            self.views[name] = tuple(view)
        if kind in ("Reshape", "Transpose", "Gather") and names[0] in self.scales:
            self.scales[name] = self.scales[names[0]]
        return name

    def constant(self, value: ArrayLike) -> str:
        """One constant for all places that need the same: int8, uint8, int32, int64 or float32."""
        array = np.ascontiguousarray(value)
        if array.dtype not in (np.int8, np.uint8, np.int32):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, np.shape(value), array.tobytes())
        if key not in self.constants:
            name = f"constant{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return self.constants[key].name

    def weight(self, array: NDArray[np.float32], axis: int, y: str = "", bias: ArrayLike = 0.0) -> str:
        """A learned constant; with 8 bits, integers and a scale for each index of `axis`.

        If y, by which it is multiplied, comes from integers, a runtime fuses the two. Else it evaluates the constant
        once, which onnxruntime does not do for DequantizeLinear. Runtimes round the bias too, to 32 bits in units of
        both scales, so that the scale of weights that are nearly 0 must not be too small.
        """
        if self.bits == 32:
            return self.constant(array)
        axis %= array.ndim
        largest = np.abs(array).max(tuple(i for i in range(array.ndim) if i != axis), keepdims=True)
        scale = np.where(largest == 0, 1, largest / 127)
        if y in self.scales:
            least = np.abs(bias) / (2**30 * np.float32(self.scales[y]))
            scale = np.maximum(scale, np.reshape(least, scale.shape)).astype(np.float32)
        integers = np.round(array / scale).astype(np.int8)
        if y not in self.scales:
            return self.node("Mul", self.node("Cast", integers, to=1), scale)
        zeros = np.zeros(array.shape[axis], np.int8)  # without them onnxruntime fuses nothing
        name = self.node("DequantizeLinear", integers, scale.ravel(), zeros, axis=axis)
        self.scales[name] = np.float32(scale.ravel())
        return name

    def bias(self, bias: ArrayLike, y: str, weight: str) -> str | ArrayLike:
        """The bias of a product of y and the weight: integers, with which runtimes fuse it, if both come from some."""
        if y not in self.scales or weight not in self.scales:
            return bias
        scales = self.scales[weight], np.float32(self.scales[y])
        integers = np.round(np.asarray(bias) / (scales[0] * scales[1])).astype(np.int32)
        return self.node("DequantizeLinear", integers, self.node("Mul", *scales), axis=0)

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
                weight = self.weight(matrix, 1, y, bias)
                return self.node("Gemm", y, weight, self.bias(bias, y, weight), view=matrix.shape[1:])
            case ops.Filter():
                return self.filter(operation, y)
            case ops.Relu():
                return self.alike("Relu", y)
            case ops.Quantize(scale, zero):
                levels: list[ArrayLike] = [np.float32(scale), np.uint8(zero)]
                y = self.viewed(y, self.views[y][-1:])  # as Gemm takes it: runtimes fuse neighbours alone
                y = self.alike("DequantizeLinear", self.alike("QuantizeLinear", y, *levels), *levels)
                self.scales[y] = scale
                return y
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
        y = self.channels_first(y)
        stored = self.weight(weight, 0, y, bias)
        y = self.node("Conv", y, stored, self.bias(bias, y, stored), group=groups)
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
        y = reduce(partial(self.alike, "Add"), products)
        for axis, basis in reversed(bases):
            y = self.along(basis, y, shape, axis, adjoint=True)
        return self.viewed(y, shape)

    def along(self, matrix: NDArray[Any], y: str, shape: Sequence[int], axis: int, *, adjoint: bool = False) -> str:
        """Σ_j matrix[i, j] y[..., j, ...] along an axis of y [-1, *shape], no axis moved; or with the matrix's adjoint.

        The file holds a matrix once: the adjoint is a node that runtimes evaluate when they load the file.
        """
        n, m = matrix.shape[::-1] if adjoint else matrix.shape
        last = axis + 1 == len(shape)
        # Not MatMul with the matrix on the left, which refuses an empty batch in onnxruntime 1.27 and older.
        weight: str | NDArray[Any] = matrix if last else matrix[..., None]
        if adjoint != last:  # of MatMul on the right, the matrix itself is the adjoint
            weight = self.node("Transpose", weight, perm=[1, 0] if last else [1, 0, 2])
        if last:
            return self.node("MatMul", self.viewed(y, shape), weight, view=(*shape[:-1], n))
        behind = math.prod(shape[axis + 1 :])
        return self.node("Conv", self.viewed(y, (m, behind)), weight, view=(n, behind))

    def flip(self, y: str, subset: tuple[int, ...]) -> str:
        if not subset:
            return y
        last, first = [-1] * len(subset), [np.iinfo(np.int64).min] * len(subset)
        return self.node("Slice", y, last, first, [axis + 1 for axis in subset], last, view=self.views[y])

    def parts(self, operation: ops.Filter) -> dict[tuple[int, ...], str]:
        """{S: A_S}, computed in the graph: R(h|λ|²) at the frequencies ±k of each axis, and its even and odd parts.

        What is mirrored has only the part that is even in each frequency.
        """
        rank, factors, parts = len(operation.axes), self.factors(operation), {}
        sizes = (0,) if operation.mirrored else range(0, rank + 1, 2)
        for subset in (s for size in sizes for s in itertools.combinations(range(rank), size)):
            parity = (-1) ** (len(subset) // 2)
            weights = {signs: parity * math.prod(signs[i] for i in subset) / len(factors) for signs in factors}
            terms = [self.alike("Mul", x, weights[signs]) for signs, x in factors.items()]
            parts[subset] = reduce(partial(self.alike, "Add"), terms)
        return parts

    def factors(self, operation: ops.Filter) -> dict[tuple[int, ...], str]:
        """{s: R(h|λ|²)} with λ_k = Σ_j θ_j exp(2πi s·k·j / period), k in the order of the basis.

        The signs s of all axes but the first are 1 and -1; -k and k give the same.
        """
        shape = list(operation.stencil.shape)
        θ = self.weight(operation.stencil[None], operation.stencil.ndim)
        self.views[θ] = tuple(shape)
        spectra: dict[tuple[int, ...], tuple[str, str]] = {(): (θ, "")}
        for axis, (n, period) in enumerate(zip(operation.axes, operation.period, strict=True)):
            k = np.arange(n) if axis < operation.mirrored else frequencies(n)
            phase = 2 * np.pi * (np.outer(k, np.arange(shape[axis])) % period) / period
            turned: dict[tuple[int, ...], tuple[str, str]] = {}
            for signs, (re, im) in spectra.items():
                cos_re, sin_re = (self.along(matrix, re, shape, axis) for matrix in (np.cos(phase), np.sin(phase)))
                if not im:
                    turned[1,] = cos_re, sin_re
                    continue
                cos_im, sin_im = (self.along(matrix, im, shape, axis) for matrix in (np.cos(phase), np.sin(phase)))
                for sign, (plus, minus) in {1: ("Add", "Sub"), -1: ("Sub", "Add")}.items():
                    turned[*signs, sign] = self.alike(minus, cos_re, sin_im), self.alike(plus, cos_im, sin_re)
            spectra = turned
            shape[axis] = n
        return {signs: self.response(operation, re, im, shape) for signs, (re, im) in spectra.items()}

    def response(self, operation: ops.Filter, re: str, im: str, shape: Sequence[int]) -> str:
        """R(h (re² + im²))."""
        squared_modulus = self.alike("Add", self.alike("Mul", re, re), self.alike("Mul", im, im))
        z = self.alike("Mul", self.viewed(squared_modulus, shape), operation.h)
        if operation.integrator == "forward_euler":
            return self.node("Sub", 1.0, z, view=shape)
        return self.alike("Reciprocal", self.alike("Add", z, 1.0))
