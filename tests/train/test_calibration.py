"""Tests temperature and calibration error against SciPy, explicit loops and invariances."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lowcost.train.calibration import calibration_error, fit_temperature, reliability, softmax


def classifier(seed, images=400, classes=5, scale=3.0):
    """Returns random logits, and labels that follow softmax(logits / scale), so logits are too large by `scale`."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(images, classes))
    labels = [rng.choice(classes, p=p) for p in softmax(logits, scale)]
    return logits, np.array(labels, np.int32)


def loss(logits, labels, temperature):
    return -log_softmax(logits / temperature, axis=-1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize(("seed", "classes", "scale"), [(0, 2, 0.5), (1, 5, 3.0), (2, 100, 8.0)])
def test_the_temperature_is_that_of_scipy_and_of_the_labels(seed, classes, scale):
    logits, labels = classifier(seed, images=4000, classes=classes, scale=scale)
    found = fit_temperature(logits, labels)
    want = minimize_scalar(lambda x: loss(logits, labels, np.exp(x)), bounds=(-3, 3), method="bounded")
    assert np.log(found) == pytest.approx(want.x, abs=1e-4)
    assert found == pytest.approx(scale, rel=0.1)
    error = [calibration_error(softmax(logits, t), labels) for t in (1, found)]
    assert error[1] < error[0] / 3


def test_the_temperature_scales_with_the_logits_and_ignores_what_the_softmax_ignores():
    logits, labels = classifier(3)
    found = fit_temperature(logits, labels)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4 * found, rel=1e-9)
    shifted = logits + np.random.default_rng(0).normal(size=(len(logits), 1))
    assert fit_temperature(shifted, labels) == pytest.approx(found, rel=1e-9)
    order = np.random.default_rng(1).permutation(5)
    assert fit_temperature(logits[:, order], np.argsort(order)[labels]) == pytest.approx(found, rel=1e-9)
    assert (softmax(logits, found).argmax(-1) == logits.argmax(-1)).all()


def test_without_a_minimum_the_temperature_is_one_or_at_a_limit():
    """If all answers are correct, the loss falls to 0 as T → 0; if all are wrong, it falls as T → ∞."""
    logits, _ = classifier(4)
    assert fit_temperature(logits, logits.argmax(-1)) == 1
    assert fit_temperature(np.zeros((3, 2)), [0, 1, 1]) == 1
    assert fit_temperature(logits, logits.argmin(-1)) == pytest.approx(20)
    almost = logits.argmax(-1)
    gaps = np.sort(logits, axis=-1)
    row = np.argmin(gaps[:, -1] - gaps[:, -2])
    almost[row] = np.argsort(logits[row])[-2]
    assert 0.05 <= fit_temperature(logits, almost) < 1


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_calibration_error_is_that_of_a_loop(bins):
    logits, labels = classifier(5, images=300)
    p = softmax(logits)
    total = 0.0
    for b in range(bins):
        rows = [i for i in range(300) if b / bins < max(p[i]) <= (b + 1) / bins]
        if rows:
            accuracy = np.mean([list(p[i]).index(max(p[i])) == labels[i] for i in rows])
            total += len(rows) / 300 * abs(accuracy - np.mean([max(p[i]) for i in rows]))
    assert calibration_error(p, labels, bins) == pytest.approx(total, abs=1e-12)
    counts, accuracy, confidence = reliability(p, labels, bins)
    assert counts.sum() == 300
    assert (counts * accuracy).sum() == pytest.approx((p.argmax(-1) == labels).sum())
    assert (counts * confidence).sum() == pytest.approx(p.max(-1).sum())


def test_the_calibration_error_of_sure_and_of_even_answers():
    sure = np.eye(4)[[0, 1, 2, 3]]
    assert calibration_error(sure, [0, 1, 2, 3]) == 0
    assert calibration_error(sure, [1, 2, 3, 0]) == 1
    assert calibration_error(sure, [0, 1, 3, 2]) == 0.5
    assert calibration_error(np.full((4, 4), 0.25), [0, 1, 2, 3]) == 0  # one in four is right, as predicted


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [0, 1], r"must be \[N, K\] and labels \[N\] .* got \[1, 2\] and \[2\]; "),
        ([0.0, 1.0], [0, 1], r"got \[2\] and \[2\]"),
        (np.zeros((0, 3)), [], r"got \[0, 3\] and \[0\]"),
        ([[0.0, np.nan]], [0], "must be finite, got nan; "),
        ([[0.0, 1.0]], [2], "labels must be integers from 0 to 1, got int64 from 2 to 2; "),
        ([[0.0, 1.0]], [-1], "got int64 from -1 to -1"),
        ([[0.0, 1.0]], [0.0], r"got float64 from 0\.0 to 0\.0"),
    ],
)
def test_wrong_arguments_are_named(logits, labels, message):
    for function in (fit_temperature, calibration_error):
        with pytest.raises(ValueError, match=message):
            function(logits, labels)
