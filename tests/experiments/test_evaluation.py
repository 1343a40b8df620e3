"""Tests the figures, reports and plots of `evaluate` against scikit-learn and SciPy."""

import csv
import json
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn import metrics

from experiments import evaluate
from experiments.common import evaluation, evaluation_plots, runs
from experiments.common.config import TrainConfig
from experiments.evaluate import EvaluateConfig
from lowcost.train.calibration import softmax


def random_answers(seed, images=200, classes=7, seeds=2):
    """Returns outputs [seeds, N, K] that are often right, and labels without the last class but one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    labels[labels == classes - 2] = 0
    outputs = rng.normal(size=(seeds, images, classes))
    outputs[:, np.arange(images), labels] += 1
    return outputs, labels


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_classes_are_those_of_scikit_learn(seed):
    (outputs, *_), labels = random_answers(seed)
    predicted, classes = outputs.argmax(-1), range(7)
    confusion = evaluation.confusion_matrix(labels, predicted, 7)
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(labels, predicted, labels=classes))
    recall, precision = evaluation.recall_and_precision(confusion)
    given = labels[:, None] == classes
    found = predicted[:, None] == classes
    options = {"average": None, "zero_division": np.nan}
    np.testing.assert_allclose(recall, metrics.recall_score(given, found, **options))
    np.testing.assert_allclose(precision, metrics.precision_score(given, found, **options))
    assert np.isnan(recall[5])
    pairs = evaluation.confusions(confusion)
    assert sum(n for _, _, n in pairs) == (predicted != labels).sum()
    assert all(i != j and confusion[i, j] == n > 0 for i, j, n in pairs)
    assert [n for _, _, n in pairs] == sorted((n for _, _, n in pairs), reverse=True)
    for z in (outputs, 1000 * outputs):
        want = -log_softmax(z, -1)[np.arange(200), labels].mean()
        assert evaluation.mean_cross_entropy(z, labels) == pytest.approx(want)
    p = softmax(outputs)
    wrong = evaluation.confident_mistakes(p, labels)
    assert set(wrong) == set(np.flatnonzero(predicted != labels))
    assert (np.diff(p[wrong].max(-1)) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_tags_and_values_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    given, outputs = rng.random((60, 4)) < 0.3, rng.normal(size=(60, 4))
    given[:, 0], outputs[:, 0] = False, -1  # a tag that no image has and no network finds
    found = evaluation.sigmoid(outputs) >= 0.5
    options = {"average": None, "zero_division": np.nan}
    want = [f(given, found, **options) for f in (metrics.recall_score, metrics.precision_score, metrics.f1_score)]
    np.testing.assert_allclose(evaluation.tag_figures(given, found), want)
    np.testing.assert_allclose(evaluation.sigmoid(800 * outputs), expit(800 * outputs), atol=1e-15)
    labels = outputs + rng.normal(size=(60, 4))
    rmse, r2 = evaluation.value_figures(labels, outputs)
    np.testing.assert_allclose(rmse, metrics.root_mean_squared_error(labels, outputs, multioutput="raw_values"))
    np.testing.assert_allclose(r2, metrics.r2_score(labels, outputs, multioutput="raw_values"))


def test_reports_of_tags_and_values():
    """The report has one line per seed, then the mean, the ensemble and each output, with values in their units."""
    rng = np.random.default_rng(0)
    given = (rng.random((50, 2)) < 0.4).astype(np.float32)
    outputs = (2 * given - 1) * 3 + rng.normal(size=(2, 50, 2))
    outputs[0, 0] *= -1
    answers = evaluation.answers("tags", outputs)
    np.testing.assert_allclose(answers, expit(outputs).mean(0))
    lines = evaluate.by_network("tags", outputs, answers, given, 4)
    f1 = [metrics.f1_score(given, p > 0, average="macro") for p in (*outputs, answers - 0.5)]
    assert lines[:2] == [f"seed {4 + i}: mean F1 {x:.2%}" for i, x in enumerate(f1[:2])]
    assert lines[2] == f"mean: mean F1 {np.mean(f1[:2]):.2%} ± {np.std(f1[:2], ddof=1):.2%}"
    assert lines[3] == f"ensemble: mean F1 {f1[2]:.2%}; all figures below are of the ensemble"
    want = metrics.recall_score(given, answers >= 0.5, average=None)[1]
    row = evaluate.by_output("tags", answers, given, ["sky", "sea"]).splitlines()[2].split()
    assert row[:3] == ["sea", str(int(given[:, 1].sum())), f"{want:.1%}"]
    labels = 100 + 10 * rng.normal(size=(50, 2))
    r2 = metrics.r2_score(labels, labels + 3, multioutput="raw_values")
    assert evaluate.by_network("values", labels[None] + 3, labels + 3, labels, 0) == [
        f"seed 0: mean R² {r2.mean():.4f}"
    ]
    row = evaluate.by_output("values", labels + 3, labels, ["length", "height"]).splitlines()[1].split()
    assert row == ["length", "3", f"{r2[0]:.4f}"]


def test_reports_of_classes():
    outputs, labels = random_answers(0)
    names = [f"class {i}" for i in range(7)]
    p = (softmax(outputs[0], 2) + softmax(outputs[1], 0.5)) / 2
    answers = evaluation.answers("classes", outputs, [2.0, 0.5])
    np.testing.assert_allclose(answers, p)
    accuracy = f"ensemble: accuracy {(p.argmax(-1) == labels).mean():.2%}; all figures below are of the ensemble"
    assert evaluate.by_network("classes", outputs, answers, labels, 3)[3] == accuracy
    confusion = metrics.confusion_matrix(labels, p.argmax(-1), labels=range(7))
    header, *rows = evaluate.confused(confusion, names).splitlines()
    assert header.split()[-7:] == [str(i) for i in range(7)]
    assert [[int(x.replace(".", "0")) for x in row.split()[-7:]] for row in rows] == confusion.tolist()
    assert len({len(row) for row in (header, *rows)}) == 1
    off = confusion - np.diag(np.diag(confusion))
    table = evaluate.by_output("classes", answers, labels, names).splitlines()
    assert table[1].endswith(f"class {off[0].argmax()} ({off[0].max()})")
    assert table[6].split()[2:] == ["0", "-", "0.0%" if confusion[:, 5].any() else "-", "-"]
    (outputs, *_), labels = random_answers(1, classes=21)
    confusion = metrics.confusion_matrix(labels, outputs.argmax(-1), labels=range(21))
    lines = evaluate.confused(confusion, [f"{i}" for i in range(21)]).splitlines()
    assert len(lines) == 11
    i, j, n = map(int, lines[1].split())
    assert confusion[i, j] == n == (confusion - np.diag(np.diag(confusion))).max()


@pytest.mark.parametrize(("classes", "shown"), [(2, 0), (21, 9)])
def test_plots_are_drawn_without_a_warning(classes, shown, tmp_path):
    """Warnings are errors in tests; class names may be long or hold what matplotlib takes for a formula."""
    (outputs, *_), labels = random_answers(2, classes=classes)
    names = [f"${i}$ \\frac" + 30 * "x" for i in range(classes)]
    confusion = evaluation.confusion_matrix(labels, outputs.argmax(-1), classes)
    evaluation_plots.draw_confusion(confusion, names, tmp_path / "a.png")
    evaluation_plots.draw_reliability({"a": softmax(outputs), "b": softmax(outputs, 2)}, labels, tmp_path / "b.png")
    images = np.zeros((shown, 8, 8, 1), np.uint8)
    evaluation_plots.draw_mistakes(images, [(names[0], "b")] * shown, shown, tmp_path / "c.png")
    assert all((tmp_path / f"{x}.png").read_bytes().startswith(b"\x89PNG") for x in "abc")


@pytest.mark.parametrize("task", ["tags", "values"])
def test_evaluate_of_tags_and_values(task, capsys, monkeypatch, tmp_path):
    """The table holds the labels and the joint answer of two networks, with values in the units of the run."""
    outputs = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    labels = np.array([[0, 1], [1, 1], [1, 0], [0, 0], [1, 1]], np.float32)
    split = Images(labels, [f"{i}.png" for i in range(5)])
    about = {"name": "folder", "classes": ("a", "b\x1b"), "task": task}
    scale = ((5, -1), (10, 2)) if task == "values" else None
    dataset = SimpleNamespace(splits={"test": split}, scale=scale, **about)
    config = TrainConfig(seeds=2)
    ready = SimpleNamespace(config=config, dataset=dataset, outputs=lambda variables, images: outputs)
    state = SimpleNamespace(
        params={"w": np.zeros(8)}, step=np.array([7, 7]), chosen={}, best={"epoch": np.array([3, 5])}
    )
    monkeypatch.setattr(runs, "reopen", lambda workdir, data_dir: (ready, state))
    of_run = {"scale": [[6, 0], [20, 4]]}
    config_json = {"ingredients": {}, "data": of_run, "settings": {}, "data_dir": None, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    evaluate.main(EvaluateConfig(tmp_path, csv=tmp_path / "table.csv"))
    out = capsys.readouterr().out
    header, first = out.splitlines()[:2]
    best = "(best epoch of each network: 3, 5)"
    assert header == f"implicit_rd A (4 weights) after 7 steps {best}, on all 5 test images of folder:"
    assert first.startswith("seed 0: mean ")
    assert "\nb\\x1b  " in out
    answers = expit(outputs).mean(0) if task == "tags" else outputs.mean(0) * (20, 4) + (6, 0)
    labels = labels if task == "tags" else labels * (10, 2) + (5, -1)
    with (tmp_path / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "a true", "b\x1b true", "a predicted", "b\x1b predicted"]
    assert [row[0] for row in rows] == split.files
    np.testing.assert_allclose([[float(x) for x in row[1:]] for row in rows], np.hstack([labels, answers]), rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "table.csv"}


@pytest.mark.parametrize(
    ("keeps", "task", "message"),
    [
        (("flip",), "values", None),
        (("shift",), "values", "needs a run that flips its training images, got one without flips; leave it out"),
        (("flip",), "pixels", "needs a network with one output per image, got the task pixels; leave it out"),
    ],
)
def test_outputs_are_averaged_over_an_image_and_its_mirror_image(keeps, task, message, capsys, monkeypatch, tmp_path):
    """The network returns the mean of the left column."""
    images = np.random.default_rng(0).uniform(size=(5, 4, 3, 1))
    split = Images(np.arange(5, dtype=np.float32)[:, None], [f"{i}.png" for i in range(5)], images)
    parts = {"splits": {"test": split}, "scale": None, "keeps": keeps}
    dataset = SimpleNamespace(name="folder", classes=("a",), task=task, **parts)
    ready = SimpleNamespace(config=TrainConfig(), dataset=dataset, outputs=lambda _, x: x[None, :, :, 0].mean(-2))
    state = SimpleNamespace(params={"w": np.zeros(4)}, step=np.array(7), chosen={}, best=None)
    monkeypatch.setattr(runs, "reopen", lambda workdir, data_dir: (ready, state))
    arguments = EvaluateConfig(tmp_path, csv=tmp_path / "table.csv", average_flips=True)
    if message is not None:
        with pytest.raises(ValueError, match=f"--average-flips {message}"):
            evaluate.main(arguments)
        return
    evaluate.main(arguments)
    assert "images of folder, each averaged with its mirror image:\nseed 0: " in capsys.readouterr().out
    with (tmp_path / "table.csv").open(newline="") as file:
        predicted = [float(row["a predicted"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(predicted, images[:, :, [0, 2], 0].mean((1, 2)), rtol=1e-4)


class Images(NamedTuple):
    """Holds five images of a data set with their labels and files."""

    labels: np.ndarray
    files: list
    images: np.ndarray = np.zeros((5, 4, 4, 1), np.uint8)

    def __len__(self):
        return 5
