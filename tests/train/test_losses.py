"""Tests losses against their formulas, weights as copies of images, and their use in training and evaluation."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit, log_softmax
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score
from train.test_step import GREY, LABELS, NET, SHAPE

from lowcost.data import IGNORED, random_translate
from lowcost.train.losses import binary_cross_entropy, cross_entropy, mixed, pixel_cross_entropy, squared_error
from lowcost.train.overlap import mean_overlaps, overlaps
from lowcost.train.state import create_state
from lowcost.train.step import make_eval_step, make_train_step, mean_metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 3)).astype(np.float32)
KEY = jax.random.key(0)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_cross_entropy_is_the_formula(smoothing):
    figures = cross_entropy(LOGITS, LABELS, class_weights=(1, 2, 3), smoothing=smoothing)
    q = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    np.testing.assert_allclose(figures["loss"], -(q * log_softmax(LOGITS, axis=-1)).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(figures["weight"], 1 + LABELS)
    np.testing.assert_array_equal(figures["correct"], LOGITS.argmax(-1) == LABELS)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_binary_cross_entropy_is_the_formula(smoothing):
    tags = RNG.integers(0, 2, LOGITS.shape).astype(np.float32)
    figures = binary_cross_entropy(LOGITS, tags, smoothing=smoothing)
    q = (1 - smoothing) * tags + smoothing / 2
    expected = -(q * log_expit(LOGITS) + (1 - q) * log_expit(-LOGITS)).mean(-1)
    np.testing.assert_allclose(figures["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(figures["correct"], ((expit(LOGITS) > 0.5) == tags).mean(-1), rtol=1e-6)


@pytest.mark.parametrize("class_weights", [None, (1, 2, 3)])
def test_the_loss_of_mixed_labels_is_that_of_their_mean(class_weights):
    """With weights a mixed image counts like its two parts; an unmixed one has its own loss."""
    loss = functools.partial(cross_entropy, class_weights=class_weights, smoothing=0.1)
    share = np.linspace(0, 1, len(LABELS)).astype(np.float32)
    others = np.roll(LABELS, -1)
    figures = mixed(LOGITS, (LABELS, others, share), loss=loss)
    weights = np.array(class_weights or (1, 1, 1))
    parts = np.stack([share * weights[LABELS], (1 - share) * weights[others]])
    target = (
        np.einsum("sb,sbk->bk", parts, 0.9 * np.eye(3)[np.stack([LABELS, others])] + 0.1 / 3) / parts.sum(0)[:, None]
    )
    np.testing.assert_allclose(figures["loss"], -(target * log_softmax(LOGITS, axis=-1)).sum(-1), rtol=1e-5)
    right = [LOGITS.argmax(-1) == labels for labels in (LABELS, others)]
    np.testing.assert_allclose(figures["correct"], share * right[0] + (1 - share) * right[1], rtol=1e-6)
    assert ("weight" in figures) == (class_weights is not None)
    if class_weights:
        np.testing.assert_allclose(figures["weight"], parts.sum(0), rtol=1e-6)


def test_squared_error_is_the_formula_and_does_not_broadcast():
    values = RNG.normal(size=LOGITS.shape).astype(np.float32)
    np.testing.assert_allclose(squared_error(LOGITS, values)["loss"], ((LOGITS - values) ** 2).mean(-1), rtol=1e-6)
    for loss in (squared_error, binary_cross_entropy):
        with pytest.raises(AssertionError):
            loss(LOGITS, values[:, :1])
    with pytest.raises(AssertionError):
        cross_entropy(LOGITS, values)
    for number in (1, 4):
        with pytest.raises(ValueError, match=f"class_weights must be 3 numbers, one per class, got {number}; pass one"):
            cross_entropy(LOGITS, LABELS, class_weights=[1.0] * number)


@functools.partial(jax.jit, static_argnames="smoothing")
def means(class_weights, rows, real, smoothing):
    """Returns the mean loss and its gradient of weighted images, and of the copies `rows` that are `real`."""

    def mean(logits, labels, real, **options):
        figures = cross_entropy(logits, labels, smoothing=smoothing, **options)
        weight = real * figures.get("weight", jnp.ones(len(labels)))
        return (weight * figures["loss"]).sum() / weight.sum()

    labels = jnp.asarray(LABELS)
    weighted = jax.value_and_grad(lambda x: mean(x, labels, jnp.ones(8), class_weights=class_weights))
    copied = jax.value_and_grad(lambda x: mean(x[rows], labels[rows], real))
    return weighted(jnp.asarray(LOGITS)), copied(jnp.asarray(LOGITS))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.sampled_from((0.0, 0.1, 0.5)))
def test_an_image_of_weight_n_is_n_copies_of_it(weights, smoothing):
    """Weighted images and an unweighted batch with copies have equal mean losses and gradients to 1e-6."""
    rows = np.repeat(np.arange(8), np.asarray(weights)[LABELS])
    filled = np.zeros(32, int)  # one shape, and so one compilation
    filled[: len(rows)] = rows
    weighted, copied = means(np.float32(weights), filled, np.arange(32) < len(rows), smoothing)
    for one, other in zip(weighted, copied, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_step_with_weights_is_the_step_on_copies():
    """The network has no statistics of the batch, so weights and metrics agree after training and evaluation too."""
    rows = np.repeat(np.arange(8), 1 + LABELS)
    weighted = functools.partial(cross_entropy, class_weights=(1, 2, 3))
    results = []
    for loss, own in ((weighted, np.arange(8)), (cross_entropy, rows)):
        figures = ("loss", "correct", "weight") if loss is weighted else ("loss", "correct")
        state = create_state(NET, optax.sgd(0.1), KEY, SHAPE, figures=figures)
        step = jax.jit(make_train_step(NET, optax.sgd(0.1), lambda images, draw: images, 2, loss=loss))
        for _ in range(2):
            state = step(state, GREY[own], LABELS[own], own)
        evaluate = jax.jit(make_eval_step(NET, loss))
        sums = evaluate(state.variables, GREY[own], LABELS[own], jnp.ones(len(own)))
        results.append((state.params, mean_metrics(state.metrics)["loss"], mean_metrics(sums)["loss"]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_batch_without_labelled_points_changes_nothing_and_is_not_skipped():
    """Tests plain gradient descent with and without class weights."""

    class Pointwise(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, images, *, train):
            return flax.linen.Dense(3)(images)

    labels = np.full(GREY.shape[:-1], IGNORED, np.uint8)
    for weights in (None, (1.0, 2.0, 3.0)):
        loss = functools.partial(pixel_cross_entropy, class_weights=weights)
        figures = {"loss": (), "weight": (), "confusion": (3, 3)}
        state = create_state(Pointwise(), optax.sgd(0.1), KEY, SHAPE, figures=figures)
        step = jax.jit(make_train_step(Pointwise(), optax.sgd(0.1), lambda images, draw: images, 1, loss=loss))
        after = step(state, GREY, labels, np.arange(8))
        assert (int(after.step), int(after.skipped), float(after.metrics["loss"])) == (1, 0, 0)
        jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize("loss", [binary_cross_entropy, squared_error])
def test_tags_and_values_are_learned(loss):
    """A linear network learns whether the first pixels are bright, or how bright they are."""
    bright = (GREY.reshape(8, -1)[:, :3] / 255).astype(np.float32)
    labels = np.round(bright) if loss is binary_cross_entropy else bright
    figures = loss(LOGITS, labels).keys()
    state = create_state(NET, optax.adam(0.01), KEY, SHAPE, figures=tuple(figures))
    step = jax.jit(make_train_step(NET, optax.adam(0.01), lambda images, draw: images, 1, loss=loss))
    losses = []
    for _ in range(100):
        state = step(state, GREY, labels, np.arange(8))
        losses.append(mean_metrics(state.metrics)["loss"])
    assert losses[-1] < losses[0] / 10
    assert mean_metrics(state.metrics).keys() == {"loss"} | ({"accuracy"} if "correct" in figures else set())


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0), ((1, 2, 3), 0.1)])
def test_pixel_cross_entropy_is_that_of_the_points_with_a_label(weights, smoothing):
    """Σ w L / Σ w over all such points of a batch, and the confusions of each image."""
    logits = RNG.normal(size=(4, 3, 5, 3)).astype(np.float32)
    labels = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (4, 3, 5))
    labels[1] = 255
    with jax.numpy_dtype_promotion("strict"):  # as some users set
        figures = pixel_cross_entropy(logits, labels, class_weights=weights, smoothing=smoothing)
    known = labels != 255
    points = cross_entropy(logits[known], labels[known].astype(int), class_weights=weights, smoothing=smoothing)
    w = points.get("weight", np.ones(known.sum()))
    np.testing.assert_allclose((figures["weight"] * figures["loss"]).sum(), (w * points["loss"]).sum(), rtol=1e-5)
    np.testing.assert_allclose(figures["weight"].sum(), w.sum(), rtol=1e-6)
    assert figures["loss"][1] == figures["weight"][1] == figures["confusion"][1].sum() == 0
    expected = confusion_matrix(labels[known], logits[known].argmax(-1), labels=range(3))
    np.testing.assert_array_equal(figures["confusion"].sum(0), expected)
    with pytest.raises(AssertionError):
        pixel_cross_entropy(logits, labels[:, :2])


def test_overlaps_are_those_of_scikit_learn():
    """IoU, Dice (F1) and accuracy agree; means leave out a class without points, and no points give NaN."""
    true, predicted = RNG.choice([0, 1, 3], (2, 50))
    confusion = confusion_matrix(true, predicted, labels=range(4))
    (iou, dice), means = overlaps(confusion), mean_overlaps(np.stack([confusion, 0 * confusion]))
    some = [0, 1, 3]
    np.testing.assert_allclose(iou[some], jaccard_score(true, predicted, labels=some, average=None))
    np.testing.assert_allclose(dice[some], f1_score(true, predicted, labels=some, average=None))
    assert np.isnan(iou[2])
    np.testing.assert_allclose(means["mean_iou"], [iou[some].mean(), np.nan])
    np.testing.assert_allclose(means["mean_dice"], [dice[some].mean(), np.nan])
    np.testing.assert_allclose(means["accuracy"], [(true == predicted).mean(), np.nan])


def test_translations_and_class_weights_take_sharded_batches():
    """Results of a batch that is sharded along an Explicit axis equal those without a mesh."""
    images, labels = jax.random.normal(jax.random.key(0), (8, 6, 5, 2)), jnp.arange(8) % 3

    @jax.jit
    def results(images, labels):
        moved = random_translate(jax.random.key(1), images)
        return moved, cross_entropy(images[:, 0, :3, 0], labels, class_weights=(1.0, 2.0, 5.0))

    expected = results(images, labels)
    with jax.set_mesh(jax.make_mesh((4,), ("data",))):
        placed = [jax.device_put(x, jax.P("data")) for x in (images, labels)]
        jax.tree.map(np.testing.assert_array_equal, results(*placed), expected)
    np.testing.assert_array_equal(expected[1]["weight"], np.array([1, 2, 5])[labels])
