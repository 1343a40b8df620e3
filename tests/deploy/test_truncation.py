"""The certificate holds, and the worst case reaches it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcost.deploy import certified, fold, quantize, truncate
from lowcost.deploy.folding import Folded, FoldedLayer, cut
from lowcost.nn.operations import Depthwise, Filter, Pointwise

GRID, H = (8, 12), 2.0


def step(seed, scale):
    stencil = scale * np.random.default_rng(seed).normal(size=(3, 3, 2)).astype(np.float32)
    return Filter(stencil, H, "imex_euler", GRID)


def norm(y):
    return np.linalg.norm(np.asarray(y, np.float64).reshape(len(y), -1), axis=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.1, 2), st.integers(0, 5), st.sampled_from(["random", "sign", "wave"]))
def test_a_cut_step_never_errs_more_than_its_bound(seed, scale, radius, kind):
    """Tests random features, the sign pattern of the dropped tail, and the frequency that truncation changes most.

    This frequency belongs to the largest eigenvalue of the difference.
    """
    whole = step(seed, scale)
    short = cut(whole, [radius] * 2)
    if kind == "random":
        y = np.random.default_rng(seed).normal(size=(1, *GRID, 2)).astype(np.float32)
    else:
        rest = whole.response.copy()
        box = tuple(
            slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(GRID, short.stencil.shape, strict=False)
        )
        rest[box] = 0
        y = np.sign(rest)[None].astype(np.float32)
        if kind == "wave":
            spectrum = np.abs(np.fft.fft2(rest, axes=(0, 1)))
            places = [np.unravel_index(spectrum[..., c].argmax(), GRID) for c in range(2)]
            grids = np.indices(GRID)
            phases = [sum(k * x / n for k, x, n in zip(place, grids, GRID, strict=True)) for place in places]
            y = np.cos(2 * np.pi * np.stack(phases, -1))[None].astype(np.float32)
    error = norm(short(jnp.asarray(y)) - whole(jnp.asarray(y)))
    folded = Folded((FoldedLayer("step", (short,), 1.0),), (*GRID, 2))
    result = certified(folded, jnp.asarray(y))
    assert error <= result.error * (1 + 1e-5) + 1e-6 * norm(y)
    # A bound in the maximum norm holds for each channel, and the sign pattern reaches it.
    change = np.abs(np.asarray(short(jnp.asarray(y)) - whole(jnp.asarray(y)))).max((0, 1, 2))
    assert np.all(change <= short.dropped * np.abs(y).max() + 1e-5)
    if kind == "sign":
        centre = np.asarray(short(jnp.asarray(y)) - whole(jnp.asarray(y)))
        np.testing.assert_allclose(np.abs(centre).max((0, 1, 2)), short.dropped, rtol=1e-3, atol=1e-5)


def test_what_a_layer_adds_is_carried_on_by_the_bounds_of_the_next():
    """Constant features lose the sum of the tail, and the next layer multiplies this error by ten."""
    whole = Filter(np.array([0.1, 1, 0.1], np.float32)[:, None], 1.0, "imex_euler", (16,))
    short = cut(whole, [1])
    tail = whole.response.sum() - short.stencil.sum()
    tenfold = Pointwise(np.float32([[10]]), np.zeros(1, np.float32))
    layers = (FoldedLayer("step", (short,), 1.0), FoldedLayer("tenfold", (tenfold,), 10.0))
    result = certified(Folded(layers, (16, 1)), jnp.ones((1, 16, 1)))
    np.testing.assert_allclose(result.error, 10 * short.dropped.sum() * 4, rtol=1e-5)  # ‖1‖ = 4
    np.testing.assert_allclose(result.layers["step"], short.dropped.sum() * 4, rtol=1e-5)
    exact = 10 * np.asarray(whole(jnp.ones((1, 16, 1))))
    assert norm(result.logits - exact) == pytest.approx(10 * abs(tail) * 4, rel=1e-3)
    assert norm(result.logits - exact) <= result.error * (1 + 1e-4)
    with pytest.raises(ValueError, match=r"images must be \[B, 16, 1\]"):
        certified(Folded(layers, (16, 1)), jnp.ones((1, 20, 1)))


def test_a_filter_that_others_follow_stays_exact():
    """Later operations may amplify its error, and their factor is known only for whole layers."""
    whole = Filter(np.array([0.1, 1, 0.1], np.float32)[:, None], 1.0, "imex_euler", (16,))
    tenfold = Pointwise(np.float32([[10]]), np.zeros(1, np.float32))
    layers = tuple(FoldedLayer(str(i), x, 10.0) for i, x in enumerate([(whole, tenfold), (whole, whole), ()]))
    first, second, empty = (layer.operations for layer in truncate(Folded(layers, (16, 1)), 0.01).layers)
    assert first == (whole, tenfold)
    assert second[0] is whole
    assert isinstance(second[1], Depthwise)
    assert empty == ()


@pytest.fixture(scope="module")
def network(trained):
    net, variables = trained("implicit_rd", (16, 16, 3), h=0.3)
    return fold(net, variables, (16, 16, 3))


@pytest.mark.parametrize("tolerance", [0.3, 0.03, 0.003])
def test_a_network_never_errs_more_than_its_certificate(network, tolerance):
    """Tests random images, a black one, a white one, and images that gradient ascent on the error made worse."""
    truncated = truncate(network, tolerance)
    stencils = [
        x for layer in truncated.layers for x in layer.operations if isinstance(x, Depthwise) and x.dropped is not None
    ]
    assert len(stencils) == 2
    assert all(x.dropped.max() <= tolerance for x in stencils)

    @jax.jit
    def error(images):
        return jnp.sqrt(jnp.sum((truncated(images) - network(images)) ** 2, axis=1) + 1e-20)

    images = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 16, 16, 3)).astype(np.float32))
    images = images.at[0].set(0).at[1].set(1)
    uphill = jax.jit(jax.grad(lambda images: error(images).sum()))
    for _ in range(8):
        images = jnp.clip(images.at[3:].add(0.1 * jnp.sign(uphill(images)[3:])), 0, 1)
    result = jax.jit(lambda images: certified(truncated, images))(images)
    np.testing.assert_allclose(result.logits, truncated(images), rtol=1e-5, atol=1e-5)
    assert np.all(error(images) <= result.error + 1e-5)
    assert np.all(result.error > 0)


def test_smaller_tolerances_take_larger_stencils(network):
    def points(tolerance):
        layers = truncate(network, tolerance).layers
        return [
            x.stencil.size
            for layer in layers
            for x in layer.operations
            if isinstance(x, Depthwise) and x.dropped is not None
        ]

    assert points(0.3) < points(0.03) <= points(0.003)
    filters = [x for layer in network.layers for x in layer.operations if isinstance(x, Filter)]
    cuts = [
        x
        for layer in truncate(network, 0.03).layers
        for x in layer.operations
        if getattr(x, "dropped", None) is not None
    ]
    for whole, short in zip(filters, cuts, strict=True):  # one pixel less would drop too much
        radius = short.stencil.shape[0] // 2
        assert cut(whole, [radius] * 2).dropped.max() <= 0.03 < cut(whole, [radius - 1] * 2).dropped.max()
    whole = truncate(network, 1e-12)
    images = jnp.full((1, 16, 16, 3), 0.3).at[:, :5].set(0.9)
    np.testing.assert_allclose(whole(images), network(images), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_truncated(trained, network):
    with pytest.raises(ValueError, match="tolerance must be above 0, got 0"):
        truncate(network, 0)
    images = jnp.ones((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"without 8-bit activations, got one, .*; certify it before quantize"):
        certified(quantize(truncate(network, 0.1), images), images)
    folded = fold(*trained("implicit_circulant_rd", (8, 8, 3)), (8, 8, 3))
    for before, after in zip(folded.layers, truncate(folded, 0.1).layers, strict=True):
        assert before.operations == after.operations
