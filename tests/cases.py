"""Lists all operators: how to call each, the printed matrix that it must equal, and how to sample its weights."""

import dataclasses
import itertools
from functools import partial

import jax
import matrices
import numpy as np
import pytest

import lowcost

H = 0.7  # the time step of the resolvents in the table
METHODS = ("fft", "matmul", "direct")
BOUNDARIES = ("periodic", "zeros", "reflect", "symmetric")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles twice as fast

FORMS = {
    "": lambda k: k,
    "_adjoint": lambda k: k.T,
    "_diffusion": lambda k: -k.T @ k,  # Eq. (8)
    "_resolvent": lambda k: np.linalg.inv(np.eye(len(k)) + H * k.T @ k),  # Eq. (11)
}
OPERATORS = {  # the shapes of the weights, for a window and a number of channels, and the forms of each operator
    "fully_coupled": (lambda window, c: [(*window, c, c + 1)], ("", "_adjoint")),
    "depthwise": (lambda window, c: [(*window, c)], tuple(FORMS)),
    "pointwise": (lambda window, c: [(c, c + 1)], ("", "_adjoint")),
    "linear_mix": (lambda window, c: [(*window, c), (c, c)], ("", "_adjoint")),
    "circulant": (lambda window, c: [(*window, c)], tuple(FORMS)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """function(*weights, y, **options) is FORMS[form](printed matrix of the operator) times y.

    A resolvent that is mirrored does not wrap around: boundary="symmetric".
    """

    operator: str
    form: str
    mirrored: bool = False

    def __str__(self):
        return self.operator + self.form + "_mirrored" * self.mirrored

    @property
    def function(self):
        """Returns the public function; that of a resolvent has its time step filled in."""
        function = getattr(lowcost, self.operator + self.form)
        options = {"boundary": "symmetric"} if self.mirrored else {}
        return partial(function, h=H, **options) if self.form == "_resolvent" else function

    @property
    def methods(self):
        """Returns the methods of the operator: a resolvent has no short stencil, and the 1x1 convolution one method."""
        if self.operator == "linear_mix":
            return *METHODS, "coupled"
        return METHODS[: 0 if self.operator == "pointwise" else 2 if self.form == "_resolvent" else 3]

    @property
    def boundaries(self):
        """Returns the boundaries of the operator: a resolvent is periodic, and the 1x1 convolution needs none."""
        return BOUNDARIES if "direct" in self.methods else ()

    @property
    def ways(self):
        """Returns the options of every method on the periodic grid."""
        return [{"method": method} for method in self.methods] or [{}]

    @property
    def bounded(self):
        """Returns the options of every method at every boundary."""
        return [{"method": m, "boundary": b} for m, b in itertools.product(self.methods, self.boundaries)]

    def draw(self, window, grid, batch=(), channels=3, dtype=np.float64, seed=0):
        """Returns random weights (a tuple) and features y [*batch, *grid, C]."""
        rng = np.random.default_rng(seed)
        weights = tuple(rng.normal(size=shape).astype(dtype) for shape in self.shapes(window, channels))
        return weights, rng.normal(size=(*batch, *grid, self.channels(weights))).astype(dtype)

    def shapes(self, window, channels):
        """Returns the shapes of the weights."""
        return OPERATORS[self.operator][0](window, channels)

    def channels(self, weights):
        """Returns the number of channels of y: C_in, or C_out for an adjoint."""
        return weights[0].shape[-2 if str(self) in ("fully_coupled", "pointwise") else -1]

    def every(self, options, weights, y):
        """Returns the results with each of the options, from one compilation."""
        run = partial(jax.jit, compiler_options=QUICK)
        return run(lambda weights, y: [self.function(*weights, y, **chosen) for chosen in options])(weights, y)

    def expected(self, options, weights, y, grid):
        """Returns the dense matrix times y, in float64, for each of the options."""
        build, form = getattr(matrices, self.operator), FORMS[self.form]
        if self.mirrored:
            mirror = matrices.mirror(grid, y.shape[-1])
            averaged = mirror.T @ form(build(*weights, [2 * n for n in grid])) @ mirror / 2 ** len(grid)
            return [matrices.product(averaged, y, grid)] * len(options)
        dense = {boundary: form(build(*weights, grid, boundary)) for boundary in self.boundaries or BOUNDARIES[:1]}
        return [matrices.product(dense[chosen.get("boundary", "periodic")], y, grid) for chosen in options]


CASES = [Case(operator, form) for operator, (_, forms) in OPERATORS.items() for form in forms]
MIRRORED = [Case(operator, "_resolvent", mirrored=True) for operator in ("depthwise", "circulant")]
CASE = {str(case): case for case in [*CASES, *MIRRORED]}
over_all = pytest.mark.parametrize("case", CASES, ids=str)
over_every = pytest.mark.parametrize("case", [*CASES, *MIRRORED], ids=str)
over_bounded = pytest.mark.parametrize("case", [case for case in CASES if case.boundaries], ids=str)


def assert_close(actual, expected, rtol=1e-12, message=""):
    """Asserts that the arrays are equal up to rtol times the largest entry."""
    expected = np.asarray(expected, np.float64)
    atol = rtol * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=atol, err_msg=str(message))
