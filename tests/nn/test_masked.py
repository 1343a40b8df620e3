"""Masked networks take signals of several lengths: what is computed on a signal does not depend on its padding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import as_if_trained

import lowcost
from lowcost.deploy import fold
from lowcost.nn import ARCHITECTURES, Network, network, network_cost, stability_report
from lowcost.nn.operations import AveragePool, GlobalAveragePool
from lowcost.nn.transitions import Connecting, Opening

LENGTHS, CHANNELS = (5, 13, 16, 22), 2
MOMENTS = ((3.0, -1.0), (2.0, 0.5))
EXPLICIT = tuple(name for name in ARCHITECTURES if "implicit" not in name)


def padded(total, offset=0.0):
    """Returns a batch [4, total, 3] of signals with their mask, zero on padding."""
    rng, batch = np.random.default_rng(0), np.zeros((len(LENGTHS), total, CHANNELS + 1), np.float32)
    for signal, length in zip(batch, LENGTHS, strict=True):
        signal[:length, :-1] = rng.normal(size=(length, CHANNELS)) + offset
        signal[:length, -1] = 1
    return batch


@functools.cache
def trained(architecture, **options):
    """Returns a masked network and variables, none of which is at its initial 0 or 1."""
    options = {"width": (4, 8), "steps_per_block": 1, "masked": True, "moments": MOMENTS} | options
    net = network(architecture, options.pop("width"), 3, **options)
    return net, as_if_trained(net, (32, CHANNELS + 1))


@functools.partial(jax.jit, static_argnums=0)
def training(net, variables, batch):
    """Returns logits, statistics and gradients of one step."""

    def loss(params):
        logits, updates = net.apply({**variables, "params": params}, batch, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), (logits, updates)

    return jax.grad(loss, has_aux=True)(variables["params"])


@functools.partial(jax.jit, static_argnums=0)
def inference(net, variables, batch):
    """Returns the logits."""
    return net.apply(variables, batch)


def assert_close(actual, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=rtol * max(np.abs(b).max(), 1e-2))


@pytest.mark.parametrize("architecture", ["resnet", "mobilenet", "explicit_rd"])  # the others take the same steps
def test_results_do_not_depend_on_padding(architecture):
    """Logits, statistics and gradients are equal if the longest signal has no padding or 43 points of it."""
    net, variables = trained(architecture)
    near, far = (training(net, variables, padded(total)) for total in (22, 65))
    assert_close(far, near, 1e-4)


@pytest.mark.parametrize("architecture", EXPLICIT)
def test_each_signal_is_as_alone_at_its_own_length(architecture):
    """At inference the logits are those of the signal by itself."""
    net, variables = trained(architecture)
    together = inference(net, variables, padded(40))
    for i, length in [*enumerate(LENGTHS)][::2]:
        alone = padded(40)[i : i + 1, :length]
        assert_close(inference(net, variables, alone), together[i : i + 1])


@pytest.mark.parametrize("architecture", EXPLICIT)
def test_a_step_sees_zeros_beyond_the_ends(architecture):
    """K₁ and K₂ᵀ of Eq. (3) see zeros beyond the signal; a diffusion is -KᵀK of the signal continued by zeros."""
    step, batch = ARCHITECTURES[architecture](), padded(40)
    y, mask = jnp.asarray(batch[..., :-1]), batch[..., -1:] > 0
    variables = step.init(jax.random.key(0), y, train=False)
    got = step.apply(variables, y, train=False, mask=mask)
    weights, n = variables["params"], 1 / np.sqrt(1 + 1e-5)
    for signal, result, length in zip(y, got, LENGTHS, strict=True):
        alone = signal[:length]
        if architecture in ("resnet", "linear_mix"):
            kind = "fully_coupled" if architecture == "resnet" else architecture
            operator, adjoint = (getattr(lowcost, kind + form) for form in ("", "_adjoint"))
            first, second = ([x for name, x in weights.items() if name[-1] == i] for i in "12")
            first, second = (sorted(pair, key=lambda x: -x.ndim) for pair in (first, second))
            between = nn.relu(n * operator(*first, alone, boundary="zeros"))
            want = alone + adjoint(*second, between, boundary="zeros")
        else:
            want = step.apply(variables, jnp.pad(alone, ((0, 9), (0, 0)))[None], train=False)[0, :length]
        np.testing.assert_allclose(result[:length], want, atol=1e-5)


@pytest.mark.parametrize("pooling", [AveragePool(), GlobalAveragePool()], ids=["between", "last"])
def test_averages_and_statistics_are_over_valid_points(pooling):
    """The connecting layer agrees with loops in NumPy; a window without valid points gives 0."""
    batch = padded(29)
    y, mask = jnp.asarray(batch[..., :-1]), batch[..., -1:] > 0
    layer = Connecting(pooling)
    variables = layer.init(jax.random.key(0), y, train=False)
    got, updates = layer.apply(variables, y, train=True, mask=mask, mutable=["batch_stats"])
    stencil = np.asarray(variables["params"]["stencil"], np.float64)
    values = np.float64(y)
    shifted = [np.roll(values, 1 - j, 1) for j in range(3)]
    both = np.concatenate([values, sum(θ * x for θ, x in zip(stencil, shifted, strict=True))], -1)
    valid = both[mask[..., 0]]
    running = updates["batch_stats"]["normalize"]
    np.testing.assert_allclose(running["mean"], 0.1 * valid.mean(0), atol=1e-6)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * valid.var(0), atol=1e-6)
    normalised = (both - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-5)
    size = 2 if isinstance(pooling, AveragePool) else 29
    for signal, length, result in zip(normalised, LENGTHS, np.asarray(got), strict=True):
        windows = [signal[i : min(i + size, length)] for i in range(0, 29, size)]
        want = np.stack([w.mean(0) if len(w) else np.zeros(2 * CHANNELS) for w in windows])
        np.testing.assert_allclose(result.reshape(want.shape), want, atol=2e-5)


@pytest.mark.parametrize(
    "layer",
    [
        *(step() for step in ARCHITECTURES.values()),
        Opening(4),
        Connecting(AveragePool()),
        Connecting(GlobalAveragePool()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_mask_of_ones_changes_no_layer(layer):
    """Layers agree in training and at inference; only a whole masked network differs, by the padding it appends."""
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 19, 4)).astype(np.float32))
    variables = layer.init(jax.random.key(0), y, train=False)
    for train in (True, False):
        run = functools.partial(layer.apply, variables, y, train=train, mutable=["batch_stats"])
        assert_close(run(mask=jnp.ones((3, 19, 1), bool)), run(), 1e-6)


@pytest.mark.parametrize("architecture", ["implicit_rd", "implicit_circulant_rd"])
def test_an_implicit_step_is_that_of_the_padded_grid(architecture):
    """Padding has an effect only by its length, on the periodic grid; its content and the values of the mask do not."""
    net, variables = trained(architecture)
    batch = padded(40)
    want = training(net, variables, batch)
    batch[..., :-1] += np.where(batch[..., -1:] > 0, 0, 7)
    batch[..., -1] /= 255
    assert_close(training(net, variables, batch), want, 0)
    far, near = (inference(net, variables, padded(total)) for total in (256, 128))
    assert_close(far, near, 1e-3)  # its Green's function decays


@pytest.mark.parametrize("options", [{"remat": True}, {"dtype": jnp.bfloat16}, {"moments": None}], ids=str)
def test_options_apply_to_masked_networks(options):
    """Recomputation gives the same results, bfloat16 similar ones; without moments nothing is standardised."""
    net, variables = trained("explicit_rd")
    if options == {"moments": None}:
        batch = padded(28)
        batch[..., :-1] = np.where(batch[..., -1:] > 0, (batch[..., :-1] - MOMENTS[0]) / MOMENTS[1], 0)
        assert_close(inference(net.clone(moments=None), variables, batch), inference(net, variables, padded(28)))
        return
    rtol = 0.1 if "dtype" in options else 1e-4
    nets = (net, net.clone(**options))
    assert_close(*(inference(x, variables, padded(28)) for x in nets), rtol)
    shapes = [jax.eval_shape(functools.partial(training, x), variables, padded(28)) for x in nets]
    assert shapes[0] == shapes[1]
    if "remat" in options:
        assert_close(*(training(x, variables, padded(28)) for x in nets), rtol)


def test_padding_alone_gives_finite_logits():
    """Batches are filled up with examples that do not count."""
    net, variables = trained("explicit_rd")
    assert np.isfinite(inference(net, variables, np.zeros((4, 28, 3), np.float32))).all()


@pytest.mark.parametrize("architecture", ["explicit_rd", "mobilenet"])
def test_no_perturbation_of_any_signal_grows_more_than_the_bound(architecture):
    """‖J‖₂ ≤ the product of the layers' bounds, also of the shortest signal."""
    net, variables = trained(architecture)
    bound = stability_report(net, variables, (28, 3)).lipschitz
    logits = jax.jit(jax.vmap(jax.jacobian(lambda signal: net.apply(variables, signal[None])[0])))
    for j in np.asarray(logits(padded(28))):
        assert not j[..., -1].any()
        assert 0 < np.linalg.norm(j.reshape(3, -1), ord=2) <= bound


def test_a_step_of_a_users_own_takes_the_mask():
    class Smooth(nn.Module):
        @nn.compact
        def __call__(self, y, *, train, mask=None):
            return y + 0.1 * jnp.roll(y, 1, axis=1)

    net = Network(Smooth, (2, 4), 3, masked=True)
    variables = jax.jit(net.init)(jax.random.key(0), padded(28))
    assert_close(*(inference(net, variables, padded(total)) for total in (28, 40)))


def test_what_a_masked_network_refuses():
    net, variables = trained("explicit_rd")
    with pytest.raises(ValueError, match="masked=False to be folded, got masked=True; train on signals resampled"):
        fold(net, variables, (28, 3))
    with pytest.raises(ValueError, match="images must have 2 channels, not counting a mask, got 3"):
        jax.eval_shape(net.apply, variables, jnp.zeros((1, 28, 4)))
    with pytest.raises(ValueError, match=r"last channel .*got shape \[1, 28, 1\]"):
        jax.eval_shape(network("explicit_rd", (4,), 3, masked=True).init, jax.random.key(0), jnp.zeros((1, 28, 1)))


def test_the_cost_is_that_of_the_padded_signals():
    net, _ = trained("explicit_rd")
    assert network_cost(net, (28, 3)) == network_cost(net.clone(masked=False), (34, 2))  # 6 points are appended
    assert net != net.clone(masked=False)
