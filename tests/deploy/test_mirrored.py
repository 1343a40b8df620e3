"""Tests every form of networks whose implicit steps mirror at the edges, boundary="symmetric"."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from cases import QUICK
from onnx_models import answer

import lowcost
from lowcost.analysis import operator_matrix
from lowcost.deploy import certified, fold, packaged, to_onnx, to_stablehlo, truncate
from lowcost.deploy.folding import Folded, FoldedLayer, cut
from lowcost.nn import ARCHITECTURES, ImplicitRDStep, network, network_cost, stability_report
from lowcost.nn import operations as ops
from lowcost.nn.stability import lipschitz


def normal(*shape):
    """Returns random numbers, the same for each shape."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def uniform(*shape):
    """Returns random images."""
    return np.random.default_rng(1).uniform(size=shape).astype(np.float32)


def filter_of(window, grid, *, circulant=False):
    """Returns the filter of an implicit step."""
    return ops.Filter(normal(*window, 3), 0.7, "imex_euler", grid, circulant, "symmetric")


def dense(operation, grid):
    """Returns the matrix of a linear operation."""
    return np.asarray(operator_matrix(lambda y: operation(y[None])[0], (*grid, 3)))


def test_folded_exported_and_bounded(trained):
    """The folded network, ONNX and StableHLO give equal logits; no perturbation grows more than the bound."""
    shape = (7, 6, 3)
    net, variables = trained("implicit_rd", shape, boundary="symmetric")
    periodic, _ = trained("implicit_rd", shape)
    folded = fold(net, variables, shape)
    stablehlo = jax.export.deserialize(bytearray(to_stablehlo(folded))).call
    images = uniform(3, *shape)

    @partial(jax.jit, compiler_options=QUICK)
    def run(images):
        jacobian = jax.jacobian(lambda image: net.apply(variables, image[None])[0])(images[0])
        logits = [f(images) for f in (partial(net.apply, variables), folded, stablehlo)]
        return logits, periodic.apply(variables, images), jacobian.reshape(5, -1)

    (want, *others), wrapped_around, jacobian = run(images)
    scale = np.abs(want).max()
    assert np.abs(wrapped_around - want).max() > 1e-4 * scale  # ten times the tolerance below
    for got in (*others, answer(to_onnx(folded), images)):
        np.testing.assert_allclose(got, want, atol=1e-5 * scale)
    assert 0 < np.linalg.norm(jacobian, ord=2) <= stability_report(net, variables, shape).lipschitz


@pytest.mark.parametrize(
    ("circulant", "window", "grid"), [(False, (3,), (5,)), (True, (2, 3), (4, 3)), (False, (3, 2, 1), (3, 2, 2))]
)
def test_a_filter_is_the_resolvent_and_its_symbol_the_eigenvalues(circulant, window, grid):
    operation = filter_of(window, grid, circulant=circulant)
    resolvent = lowcost.circulant_resolvent if circulant else lowcost.depthwise_resolvent
    y = normal(2, *grid, 3)
    expected = resolvent(operation.stencil, y, 0.7, boundary="symmetric")
    np.testing.assert_allclose(operation(y), expected, atol=2e-6)
    folded = Folded((FoldedLayer("filter", (operation,), 1.0),), (*grid, 3))
    np.testing.assert_allclose(answer(to_onnx(folded), y).reshape(y.shape), expected, atol=2e-6)
    eigenvalues = np.linalg.eigvalsh(dense(operation, grid))
    np.testing.assert_allclose(np.sort(operation.symbol.ravel()), eigenvalues, atol=2e-6)
    assert lipschitz((operation,), grid) == operation.symbol.max() <= 1
    assert operation.decay.shape == (*(2 * n for n in grid), 3)


@pytest.mark.parametrize(
    ("radius", "window", "grid"), [(1, (3,), (7,)), (9, (3,), (7,)), (0, (3, 2), (5, 4)), (2, (3, 2), (5, 4))]
)
def test_a_cut_filter_never_errs_more_than_its_bound(radius, window, grid):
    """‖A - Ã‖₂ ≤ the ℓ¹ norm of what is cut off, channel by channel; nothing is lost if nothing is cut off."""
    whole = filter_of(window, grid)
    short = cut(whole, [radius] * len(grid))
    difference = (dense(whole, grid) - dense(short, grid)).reshape(-1, 3, np.prod(grid), 3)
    norms = [np.linalg.norm(difference[:, c, :, c], ord=2) for c in range(3)]
    assert np.all(norms <= short.dropped + 1e-6)
    assert (short.dropped.max() < 1e-12) == (radius == 9)
    assert np.linalg.norm(dense(short, grid), ord=2) <= lipschitz((short,), grid) * (1 + 1e-5)


def test_sums_of_what_is_diagonal_in_different_bases_are_bounded():
    grid = (4, 5)
    stencil = ops.Depthwise(normal(3, 3, 3))
    total = ops.Sum(((filter_of((3, 3), grid),), (stencil,), (cut(filter_of((3, 3), grid), [1, 1]),), ()))
    assert np.linalg.norm(dense(total, grid), ord=2) <= lipschitz((total,), grid)


def test_a_truncated_network_keeps_its_certificate(trained):
    shape = (8, 8, 3)
    net, variables = trained("implicit_rd", shape, h=0.1, boundary="symmetric")
    folded = fold(net, variables, shape)
    images = uniform(3, *shape)
    short = truncate(folded, 0.1)
    result = certified(short, images)
    assert not any(isinstance(x, ops.Filter) for layer in short.layers for x in layer.operations)
    assert np.all(np.linalg.norm(result.logits - folded(images), axis=1) > 0)
    assert np.all(np.linalg.norm(result.logits - folded(images), axis=1) <= result.error)
    np.testing.assert_allclose(answer(to_onnx(short), images), result.logits, atol=1e-5)


def test_the_step_of_a_module_and_its_symbol():
    """The symbol is on the mirrored grid; |λ|² of an even stencil at πk/n gives the eigenvalues of the filter."""
    θ = normal(3, 3, 2)
    θ += θ[::-1]
    θ += θ[:, ::-1]
    step = ImplicitRDStep(h=0.5, boundary="symmetric").bind({"params": {"stencil": θ}})
    λ = step.symbol((6, 4))
    assert λ.shape == (12, 8, 2)
    filter_ = ops.Filter(θ, 0.5, "imex_euler", (6, 4), boundary="symmetric")
    np.testing.assert_allclose(1 / (1 + 0.5 * np.abs(λ[:6, :4]) ** 2), filter_.symbol, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "shape"), [("implicit_rd", (7, 6, 3)), ("implicit_circulant_rd", (8, 2))])
def test_cost_by_matrix_products(trained, architecture, shape):
    """The real symbol saves 2ᵈ⁻¹ - 1 multiply-adds per feature in matrix products, and none in FFTs."""
    net, periodic = (trained(architecture, shape, boundary=b)[0] for b in ("symmetric", "periodic"))
    assert network_cost(net, shape) == network_cost(periodic, shape)
    axes, features = len(shape) - 1 + ("circulant" in architecture), 0
    for number, grid in enumerate((shape[:-1], [-(-n // 2) for n in shape[:-1]])):
        features += np.prod(grid) * 4 * 2**number
    saved = network_cost(periodic, shape, method="matmul").multiply_adds
    saved -= network_cost(net, shape, method="matmul").multiply_adds
    assert saved == (2 ** (axes - 1) - 1) * features


def test_saved_with_a_format_of_its_own(trained):
    """Its number makes earlier versions refuse the file; files of other networks keep the old format."""
    for options, number in (({"boundary": "symmetric"}, "3"), ({"zero_mean": True}, "3"), ({}, "1")):
        net, variables = trained("implicit_rd", (8, 8, 3), **options)
        about = {"classes": tuple("abcde"), "image_shape": (8, 8, 3), "preprocessing": "{}"}
        content = packaged.encode(packaged.Loaded(net=net, variables=variables, **about))
        assert packaged.decode(content, "file").net == net
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        assert metadata["format"] == number
        assert options.items() <= json.loads(metadata["network"]).items()


def test_what_has_no_implicit_step_is_refused():
    for name, value, default in (("boundary", "symmetric", "'periodic'"), ("zero_mean", True, "False")):
        for architecture in ARCHITECTURES:
            make = partial(network, architecture, (2, 4), 3, **{name: value})
            if architecture.startswith("implicit"):
                assert make().step.keywords[name] == value
                continue
            message = f"{name} must be {default} for '{architecture}', .* not implicit .* got {value!r}; use"
            with pytest.raises(ValueError, match=message):
                make()
    with pytest.raises(ValueError, match="boundary must be one of 'periodic', 'symmetric' here, got 'reflect'"):
        network("implicit_rd", (2, 4), 3, boundary="reflect")
