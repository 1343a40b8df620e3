"""A folded network of Section 4 as an ONNX graph of standard operators: Conv, MatMul, Add, Mul, Relu, pooling, Gemm.

Features are channels last as everywhere, which makes most of the work large matrix products; a stencil's Conv, which
ONNX wants channels first, stands between two transpositions, while the transform of an axis is a Conv of width 1. The
symbols of the filters are computed in the graph from their stencils, of which a runtime makes constants when it loads
the file: beside the network's weights the file holds the real bases of the transforms alone, about 11 n² bytes for
images of n x n pixels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import reduce, singledispatchmethod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowcost.deploy.folding import Folded
from lowcost.deploy.operations import (
    AveragePool,
    Concatenate,
    Convolution,
    Depthwise,
    Filter,
    GlobalAveragePool,
    Operation,
    Pointwise,
    Relu,
    Sum,
)
from lowcost.spectral import real_basis, slots

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 22)
"""Versions of the operators that can be written: from 13 on the axes of ReduceSum are an input; 21 is the default."""


def to_onnx(
    folded: Folded, *, metadata: Mapping[str, str] | None = None, bits: int = 32, opset: int = OPSETS[-1]
) -> "onnx.ModelProto":
    """The network of Section 4 as ONNX: `images` float32 [batch, *grid, C] in [0, 1] → `logits` [batch, num_classes].

    Args:
        folded: from `fold` or `truncate`.
        metadata: key → text, kept in the file.
        bits: 32, or 8 to store the weights of matrices and stencils as integers with a scale for each output channel;
            what is computed stays float32.
        opset: version of the operators, 13 to 21: the same graph for older runtimes; onnxruntime 1.12 reads 17. The
            version of the file format is the oldest that has this opset.

    Returns:
        The model, checked by `onnx.checker`; an empty batch gives `logits` [0, num_classes].

    Raises:
        ImportError: the package onnx is missing.
        ValueError: bits is neither 32 nor 8, or opset is not in its range.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("to write ONNX the package onnx is needed: pip install 'lowcost[export]'") from error
    if bits not in (8, 32):
        raise ValueError(f"bits must be 8 or 32, got {bits}")
    if opset not in OPSETS:
        raise ValueError(
            f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}; choose one that the runtime reads"
        )
    graph = _Graph(onnx.helper, onnx.numpy_helper.from_array, bits, folded.image_shape[:-1])
    y = "images"
    graph.views[y] = folded.image_shape
    for layer in folded.layers:
        graph.scope = layer.name
        y = graph.run(layer.operations, y)
    graph.nodes[-1].output[0] = "logits"
    number = onnx.TensorProto.FLOAT
    (classes,) = graph.views[y]
    proto = onnx.helper.make_graph(
        graph.nodes,
        "lowcost",
        [onnx.helper.make_tensor_value_info("images", number, ["batch", *folded.image_shape])],
        [onnx.helper.make_tensor_value_info("logits", number, ["batch", classes])],
        graph.constants,
    )
    operators = [onnx.helper.make_opsetid("", opset)]
    oldest = onnx.helper.find_min_ir_version_for(operators)
    model = onnx.helper.make_model(proto, opset_imports=operators, ir_version=oldest, producer_name="lowcost")
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants as they come; every method that adds a node gives the name of its result."""

    def __init__(self, helper: Any, from_array: Any, bits: int, grid: tuple[int, ...]):
        self.helper, self.from_array, self.bits = helper, from_array, bits
        self.grid, self.dims = grid, len(grid)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.scope = ""
        self.views: dict[str, tuple[int, ...]] = {}
        self._reshaped: dict[tuple[str, tuple[int, ...]], str] = {}
        self._shared: dict[Any, str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.scope}/{kind}{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, array: Any, kind: Any = np.float32) -> str:
        """One for all places that need the same."""
        array = np.ascontiguousarray(array, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = f"constant{len(self.constants)}"
            self.constants.append(self.from_array(array, self._shared[key]))
        return self._shared[key]

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, array: NDArray[np.float32], axis: int) -> str:
        """A constant that has been learned, in 8 bits if so chosen, with a scale for each index of `axis`."""
        if self.bits == 32:
            return self.constant(array)
        largest = np.abs(array).max(tuple(i for i in range(array.ndim) if i != axis))
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        scale = np.where(largest == 0, 1, largest / 127).reshape(shape)
        # Not DequantizeLinear, which onnxruntime would compute anew, with all that follows from it, at every call.
        integers = self.constant(np.round(array / scale), np.int8)
        return self.node("Mul", self.node("Cast", integers, to=1), self.constant(scale))

    def viewed(self, y: str, view: Sequence[int]) -> str:
        """y as [-1, *view], once for all that need it so."""
        if self.views[y] == tuple(view):
            return y
        key = (y, tuple(view))
        if key not in self._reshaped:
            self._reshaped[key] = self.features("Reshape", view, y, self.integers(-1, *view))
        return self._reshaped[key]

    def features(self, kind: str, view: Sequence[int], *inputs: str, **attributes: Any) -> str:
        """A node whose result is [-1, *view]."""
        name = self.node(kind, *inputs, **attributes)
        self.views[name] = tuple(view)
        return name

    def alike(self, kind: str, *inputs: str) -> str:
        """A node that acts point by point, in the view that its first features have."""
        view = self.views[inputs[0]]
        return self.features(kind, view, *(self.viewed(x, view) if x in self.views else x for x in inputs))

    def run(self, operations: Sequence[Operation], y: str) -> str:
        for operation in operations:
            y = self.add(operation, y)
        return y

    @singledispatchmethod
    def add(self, operation, y: str) -> str:
        raise TypeError(f"to_onnx knows nothing of {type(operation).__name__}")

    @add.register
    def _(self, operation: Convolution, y: str) -> str:
        weight = np.moveaxis(operation.stencil, (-1, -2), (0, 1))
        return self.convolve(y, weight, operation.bias, groups=1)

    @add.register
    def _(self, operation: Depthwise, y: str) -> str:
        *window, c = operation.stencil.shape
        if math.prod(window) > 1:
            return self.convolve(y, np.moveaxis(operation.stencil, -1, 0)[:, None], operation.bias, groups=c)
        y = self.viewed(y, (*self.grid, c))
        scaled = self.alike("Mul", y, self.constant(operation.stencil.reshape(c)))
        return self.alike("Add", scaled, self.constant(operation.bias))

    def convolve(self, y: str, weight: NDArray[np.float32], bias: NDArray[np.float32], groups: int) -> str:
        y = self.viewed(y, (*self.grid, weight.shape[1] * groups))
        for axis, (n, m) in enumerate(zip(self.grid, weight.shape[2:], strict=True), 1):
            # Not Pad, whose mode "wrap" needs opset 19 and, in onnxruntime, at least one image; Gather is also faster.
            y = self.node("Gather", y, self.integers(*(np.arange(n + m - 1) - m // 2) % n), axis=axis)
        y = self.node("Conv", self.channels_first(y), self.weight(weight, 0), self.constant(bias), group=groups)
        return self.channels_last(y, len(weight))

    def channels_first(self, y: str) -> str:
        last = self.dims + 1
        return self.node("Transpose", y, perm=[0, last, *range(1, last)])

    def channels_last(self, y: str, channels: int) -> str:
        return self.features("Transpose", (*self.grid, channels), y, perm=[0, *range(2, self.dims + 2), 1])

    @add.register
    def _(self, operation: Pointwise, y: str) -> str:
        """As a product for all pixels at once, into which runtimes draw the bias and ReLU."""
        y = self.viewed(y, operation.matrix.shape[:1])
        weights = self.weight(operation.matrix, 1), self.constant(operation.bias)
        return self.features("Gemm", operation.matrix.shape[1:], y, *weights)

    @add.register
    def _(self, operation: Relu, y: str) -> str:
        return self.alike("Relu", y)

    @add.register
    def _(self, operation: AveragePool, y: str) -> str:
        c = self.views[y][-1]  # as a connecting layer left it
        y = self.channels_first(self.viewed(y, (*self.grid, c)))
        y = self.node("AveragePool", y, kernel_shape=[2] * self.dims, strides=[2] * self.dims)
        self.grid = tuple(n // 2 for n in self.grid)
        return self.channels_last(y, c)

    @add.register
    def _(self, operation: GlobalAveragePool, y: str) -> str:
        axes = self.integers(*range(1, self.dims + 1))
        total = self.features("ReduceSum", self.views[y][-1:], y, axes, keepdims=0)
        return self.alike("Mul", total, self.constant(1 / math.prod(self.grid)))

    @add.register
    def _(self, operation: Sum, y: str) -> str:
        terms = [self.run(branch, y) for branch in operation.branches]
        return reduce(lambda a, b: self.alike("Add", a, b), reversed(terms))

    @add.register
    def _(self, operation: Concatenate, y: str) -> str:
        branches = [self.run(branch, y) for branch in operation.branches]
        c = sum(self.views[branch][-1] for branch in branches)
        return self.features("Concat", (*self.grid, c), *branches, axis=-1)

    @add.register
    def _(self, operation: Filter, y: str) -> str:
        """Rᵀ Σ_S A_S ⊙ flip_S(R y)."""
        shape = [*operation.grid, operation.stencil.shape[-1]]
        bases = list(enumerate(map(real_basis, operation.axes)))
        for axis, basis in bases:
            y = self.along(basis, y, shape, axis)
        y = self.viewed(y, shape)
        products = [self.alike("Mul", self.flip(y, subset), part) for subset, part in self.parts(operation).items()]
        y = reduce(lambda a, b: self.alike("Add", a, b), products)
        for axis, basis in reversed(bases):
            y = self.along(basis.T, y, shape, axis)
        return y

    def along(self, matrix: NDArray[Any], y: str, shape: Sequence[int], axis: int) -> str:
        """Σ_j matrix[i, j] y[..., j, ...] along an axis of y [-1, *shape], no axis moved."""
        n, m = matrix.shape
        if axis + 1 == len(shape):
            y = self.viewed(y, shape)
            return self.features("MatMul", (*shape[:-1], n), y, self.constant(matrix.T))
        behind = math.prod(shape[axis + 1 :])
        # Not MatMul with the matrix on the left, which refuses an empty batch in onnxruntime 1.27 and older.
        return self.features("Conv", (n, behind), self.viewed(y, (m, behind)), self.constant(matrix[..., None]))

    def flip(self, y: str, subset: tuple[int, ...]) -> str:
        if not subset:
            return y
        backwards, first = [-1] * len(subset), [np.iinfo(np.int64).min] * len(subset)
        axes = [axis + 1 for axis in subset]
        where = (self.integers(*x) for x in (backwards, first, axes, backwards))
        return self.features("Slice", self.views[y], y, *where)

    def parts(self, operation: Filter) -> dict[tuple[int, ...], str]:
        """{S: A_S}, computed in the graph: R(h|λ|²) at the frequencies ±k of each axis, and its even and odd parts."""
        rank = len(operation.axes)
        patterns = list(itertools.product((1,), *[(1, -1)] * (rank - 1)))  # k and -k are alike
        factors = [self.factor(operation, signs) for signs in patterns]
        parts = {}
        for subset in (s for size in range(0, rank + 1, 2) for s in itertools.combinations(range(rank), size)):
            parity = [(-1) ** (len(subset) // 2) * math.prod(signs[i] for i in subset) for signs in patterns]
            shares = [self.constant(x / len(patterns)) for x in parity]
            terms = [self.alike("Mul", x, share) for x, share in zip(factors, shares, strict=True)]
            parts[subset] = reduce(lambda a, b: self.alike("Add", a, b), terms)
        return parts

    def factor(self, operation: Filter, signs: tuple[int, ...]) -> str:
        """R(h|λ|²) with λ_k = Σ_j θ_j exp(2πi s·k·j / n), k in the order of the basis."""
        shape = list(operation.stencil.shape)
        re, im = self.weight(operation.stencil[None], operation.stencil.ndim), ""
        self.views[re] = tuple(shape)
        for axis, (n, sign) in enumerate(zip(operation.axes, signs, strict=True)):
            with jax.ensure_compile_time_eval():
                k = np.asarray(slots(jnp.arange(n), 0, n))
            phase = 2 * np.pi * (sign * np.outer(k, np.arange(shape[axis])) % n) / n
            cos, sin = np.cos(phase), np.sin(phase)
            turned = [self.along(matrix, re, shape, axis) for matrix in (cos, sin)]
            if im:
                real, imaginary = (self.along(matrix, im, shape, axis) for matrix in (sin, cos))
                turned = [self.alike("Sub", turned[0], real), self.alike("Add", turned[1], imaginary)]
            re, im = turned
            shape[axis] = n
        power = self.alike("Add", self.alike("Mul", re, re), self.alike("Mul", im, im))
        z = self.alike("Mul", self.viewed(power, shape), self.constant(operation.h))
        one = self.constant(1)
        if operation.integrator == "forward_euler":
            return self.features("Sub", shape, one, z)
        return self.alike("Reciprocal", self.alike("Add", z, one))
