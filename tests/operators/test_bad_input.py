"""Invalid arguments raise while tracing; the message names the argument, what is expected and what was passed."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASE, CASES, over_all

import lowcost

WINDOW, GRID = (3, 2), (5, 4)
over_stencils = pytest.mark.parametrize("case", [case for case in CASES if case.methods], ids=str)


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def arguments(case, window=WINDOW):
    """Returns valid weights and features, of which a test replaces one, and the name of the features."""
    weights, y = case.draw(window, GRID)
    return *(shaped(*a.shape) for a in (*weights, y)), r"\bz\b" if case.form == "_adjoint" else r"\by\b"


def refused(function, *arguments, words, error=ValueError):
    """Asserts that the function raises without computing, with a message that has every one of the words."""
    with pytest.raises(error) as raised:
        jax.eval_shape(function, *arguments)
    missing = [word for word in words if not re.search(word, str(raised.value))]
    assert not missing, f"{missing} not in: {raised.value}"


def test_a_matrix_is_shown_as_it_was_given():
    """The message does not show its transpose."""
    refused(lowcost.pointwise_adjoint, shaped(3, 5), shaped(2, 3), words=[r"\[3, 5\]"])


@over_stencils
def test_rank(case):
    """A stencil [3, 2, C] needs two axes for the grid, and a stencil [C] has none of its own."""
    stencil, *others, y, name = arguments(case)
    for shape in ((4, y.shape[-1]), y.shape[-1:], ()):
        refused(case.function, stencil, *others, shaped(*shape), words=[name])
    refused(case.function, shaped(*stencil.shape[2:]), *others, y, words=["stencil"])


@over_all
def test_channels(case):
    """The features have the channels of the weights."""
    *weights, y, name = arguments(case)
    refused(case.function, *weights, shaped(*GRID, 7), words=[name, str(y.shape[-1]), "7"])


@pytest.mark.parametrize("name", ["linear_mix", "linear_mix_adjoint", "pointwise", "pointwise_adjoint"])
def test_matrix(name):
    """M of Eq. (6) must be a matrix, and in Eq. (7) a square one."""
    *stencils, _, y, _ = arguments(CASE[name])
    for shape in [(3,), (1, 1, 3, 3), *([(3, 7), (7, 3), (7, 7)] if stencils else [])]:
        refused(CASE[name].function, *stencils, shaped(*shape), y, words=["matrix", *("7" if 7 in shape else "")])


@over_stencils
@pytest.mark.parametrize("window", [(6, 2), (3, 6)], ids=str)
def test_stencil_larger_than_the_grid(case, window):
    """A stencil larger than the grid on one axis is an error."""
    *good, _ = arguments(case, window)
    refused(case.function, *good, words=["stencil", "grid", "6", "5|4"])


UNKNOWN = [
    (case, name, unknown, offered)
    for case in CASES
    for name, unknown, offered in (
        ("method", "fastest", case.methods),
        ("method", "direct", case.methods),
        ("boundary", "mirror", case.boundaries),
    )
    if offered and unknown not in offered
]


@pytest.mark.parametrize(("case", "name", "unknown", "offered"), UNKNOWN, ids=str)
def test_options(case, name, unknown, offered):
    """The message lists the choices; the inverse of Eq. (11) has no short stencil to apply directly."""
    *good, _ = arguments(case)
    refused(partial(case.function, **{name: unknown}), *good, words=[name, unknown, *offered])


def test_one_time_step_for_all_channels_that_are_transformed():
    refused(
        lowcost.circulant_resolvent, shaped(3, 3, 4), shaped(2, 8, 6, 4), jnp.ones(4), error=ValueError, words=["4"]
    )


@pytest.mark.parametrize("name", ["depthwise_resolvent", "circulant_resolvent"])
@pytest.mark.parametrize("h", [-1, -0.5, float("nan"), float("inf"), -float("inf"), 1j])
def test_step(name, h):
    """h must be real, finite and ≥ 0, also as an array whose numbers are known."""
    *good, _ = arguments(CASE[name])
    for given in (h, np.array(h), jnp.array(h), *([np.array([1, 1, h])] if name == "depthwise_resolvent" else [])):
        refused(partial(getattr(lowcost, name), h=given), *good, words=[r"\bh\b", r"1\.?j" if h == 1j else str(h)])


@over_all
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_integers(case, dtype):
    """Neither weights nor features are rounded silently."""
    *good, features = arguments(case)
    weights = {"pointwise": ["matrix"], "linear_mix": ["stencil", "matrix"]}.get(case.operator, ["stencil"])
    for position, name in enumerate([*weights, features]):
        bad = [shaped(*a.shape, dtype=dtype if i == position else a.dtype) for i, a in enumerate(good)]
        refused(case.function, *bad, error=TypeError, words=[name, jnp.dtype(dtype).name])


@over_all
def test_dtypes_need_no_implicit_promotion(case):
    """Some users forbid it; weights and features may then still differ in their dtypes."""
    *good, _ = arguments(case)
    with jax.numpy_dtype_promotion("strict"):
        for way in case.ways:
            for dtypes in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16)):
                kinds = [dtypes[0], *(dtypes[1],) * (len(good) - 1)]
                given = [shaped(*a.shape, dtype=kind) for a, kind in zip(good, kinds, strict=True)]
                assert jax.eval_shape(partial(case.function, **way), *given).dtype == kinds[-1]


@pytest.mark.parametrize("function", [lowcost.symbol, lowcost.circulant_symbol])
def test_symbols(function):
    """λ needs a grid with the stencil's dimensions, at least as large as the stencil."""
    refused(partial(function, grid=(2, 4)), shaped(3, 2, 3), words=["stencil", "grid", "3", "2"])
    refused(partial(function, grid=(5,)), shaped(3, 2, 3), words=["grid"])
    refused(partial(function, grid=GRID), shaped(3), words=["stencil|grid"])
    refused(partial(function, grid=GRID), shaped(3, 2, 3, dtype=jnp.int32), error=TypeError, words=["stencil", "int32"])


def test_apply_symbol():
    """A symbol must fit its features, and the method must be a transform."""
    symbol, y, apply = shaped(*GRID, 3, dtype=jnp.complex64), shaped(*GRID, 3), lowcost.apply_symbol
    for shape in ((5, 6, 3), (*GRID, 7), (4, 3)):
        refused(apply, symbol, shaped(*shape), words=[r"\by\b|symbol"])
    refused(apply, symbol, shaped(*GRID, 3, dtype=jnp.int32), error=TypeError, words=[r"\by\b", "int32"])
    for method in ("direct", "fastest"):
        refused(partial(apply, method=method), symbol, y, words=["method", method, "fft", "matmul"])


@pytest.mark.parametrize("name", ["depthwise", "depthwise_adjoint", "depthwise_diffusion", "circulant"])
@pytest.mark.parametrize("stencil", [np.float32(1), np.ones(3, np.float32), np.ones((1, 1, 1, 1, 1, 2), np.float32)])
def test_stencils_without_a_window_or_with_too_many_axes(name, stencil):
    with pytest.raises(ValueError, match="stencil must have one to four window axes"):
        getattr(lowcost, name)(stencil, np.ones((2, 2, 2, 2, 2, 2), np.float32))


@over_stencils
def test_no_channels(case):
    stencil, *others = arguments(case)[:-1]
    empty = [shaped(*[0 if size == stencil.shape[-1] else size for size in a.shape]) for a in (stencil, *others)]
    refused(case.function, *empty, words=["stencil must have a channel"])


@pytest.mark.parametrize("arguments", [([1.0], np.ones((3, 1))), (np.ones((1, 1)), [[1.0]])])
def test_lists_are_not_arrays(arguments):
    for function in (lowcost.depthwise, lowcost.circulant, lowcost.apply_symbol):
        with pytest.raises((TypeError, ValueError), match="must"):
            function(*arguments)
