"""Tests what `stability` and `robustness` measure on a hardly trained network, and that the bounds hold."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import robustness, stability
from experiments.common import perturbations, training
from experiments.common.config import TrainConfig
from experiments.common.files import read_rows

RESULTS = Path("experiments/results")


def test_both_on_a_run(tmp_path, monkeypatch):
    """Explicit steps outgrow every limit at h = 10⁵; no change of the logits passes its bound; both pages are made."""
    few = {"width": (8,), "steps_per_block": 1, "epochs": 1, "train_images": 200}
    run = TrainConfig(architecture="explicit_rd", workdir=tmp_path / "explicit", **few)
    assert training.run(run) == 0
    rows = list(stability.measure(run, (0.1, 1.0, 1e5), 8))
    assert [row["weights"] for row in rows] == ["initial", "trained", "trained"]
    assert all(row["growth"][-1] > stability.LIMIT and row["growth"][0] < 10 for row in rows)
    page = stability.markdown([{**row, "flags": "--images 8"} for row in rows])
    assert "Made by `python -m experiments.stability --images 8`." in page
    assert "| explicit_rd | initial | of the batch | 1 |" in page
    stability.draw(rows, tmp_path / "stability.png")

    strengths = {"bits": (4,), "weight noise": (5,), "image noise": (10,), "blur": (1,), "h times": (2,)}
    monkeypatch.setattr(robustness, "STRENGTHS", strengths)
    subject = robustness.Subject(tmp_path / "explicit", robustness.Config(images=8))
    rows = [{"workdir": "explicit", "flags": "--short", **row} for row in robustness.measure(subject)]
    kinds = ["as it is", "bfloat16", "bits", "weight noise", "image noise", "blur", "h times"]
    assert [row["kind"] for row in rows] == kinds
    result = json.loads((tmp_path / "explicit" / "result.json").read_text())
    assert rows[0]["accuracy"] == pytest.approx(result["test_accuracy"])
    assert rows[0]["change"] == 0
    for row in rows[1:-1]:
        assert 0 < row["change"] <= row["bound"]
    noise = rows[4]
    assert noise["layers"][0] == "opening"
    assert noise["layers"][-1] == "classifier"
    assert all(
        ratio <= bound * (1 + 1e-5) for ratio, bound in zip(noise["ratios"], noise["lipschitz_up_to"], strict=True)
    )
    assert noise["ratios"][0] > 0.01 * noise["lipschitz_up_to"][0]  # the opening alone comes near its own bound
    page = robustness.markdown(rows)
    assert "| bits 4 |" in page
    assert "Made by `python -m experiments.robustness explicit --short`." in page
    robustness.draw(rows, tmp_path / "robustness.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("stability", "robustness"))


@pytest.mark.parametrize("options", [{}, {"head": "pixels", "decoder": True}], ids=["class", "pixels"])
def test_the_bound_on_changed_weights_is_exact_where_nothing_follows(options):
    """It is the change of the layer's output, times the Lipschitz bounds of the layers that follow."""
    from lowcost.nn import network
    from lowcost.nn.stability import stability_report

    net = network("implicit_rd", (4, 8), 3, steps_per_block=1, **options)
    images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    clean = perturbations.features(net, variables, images)
    np.testing.assert_allclose(perturbations.weights_bound(net, variables, images, clean), 0, atol=1e-3)
    layers = list(clean)
    for depth in 1, 3:
        name = layers[-depth]
        params = {**variables["params"], name: jax.tree.map(lambda w: 1.5 * w + 0.1, variables["params"][name])}
        perturbed = {**variables, "params": params}
        outputs = perturbations.features(net, perturbed, images)
        change = np.linalg.norm((outputs[name] - clean[name]).reshape(5, -1), axis=1)
        report = stability_report(net, perturbed, images.shape[1:])
        factors = [layer.lipschitz for layer in report.layers[len(layers) - depth + 1 :]]
        bound = perturbations.weights_bound(net, perturbed, images, clean)
        np.testing.assert_allclose(bound, change * np.prod(factors), rtol=1e-4)


@pytest.mark.parametrize("architecture", ["explicit_rd", "implicit_circulant_rd"])
def test_growth_is_that_of_the_network_with_this_h(architecture):
    """The compiled function takes any h, agrees with a network built with that h, and returns ∞ for NaN."""
    from lowcost.nn import network

    net, other = (network(architecture, (4, 8), 3, steps_per_block=1, h=h) for h in (1.0, 3.0))
    images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    size = {name: np.sqrt(np.mean(y**2)) for name, y in perturbations.features(other, variables, images).items()}
    expected = max(value for name, value in size.items() if "_step" in name) / size["opening"]
    grow = jax.jit(functools.partial(stability.growth, net, by_batch=False))
    assert grow(3.0, variables, images) == pytest.approx(expected, rel=1e-5)
    assert grow(3.0, variables, np.nan * images) == math.inf


def test_runs_of_the_same_name_are_shown_by_their_paths():
    rows = [{"workdir": "a/run"}, {"workdir": "b/run"}, {"workdir": "b/other"}]
    assert robustness._names(rows) == {"a/run": "a/run", "b/run": "b/run", "b/other": "other"}


def test_a_network_that_diverges_keeps_no_other_from_being_measured(tmp_path, monkeypatch):
    """The other networks are measured, and the program ends with the status of the failed run."""
    row = {"weights": "initial", "statistics": "of the batch", "epochs": 5, "seed": 0, "images": 64, "stiffness": 1.0}
    monkeypatch.setattr(training, "run", lambda run, recipe: 3 if run.architecture == "explicit_rd" else 0)
    monkeypatch.setattr(
        stability,
        "measure",
        lambda run, sizes, images: [
            {"steps_per_block": 4, "architecture": run.architecture, **row, "h": [1.0], "growth": [2.0]}
        ],
    )
    config = stability.Config(steps_per_block=(4,), workdir=tmp_path, out=tmp_path / "stability")
    assert stability.main(config) == 3
    assert [row["architecture"] for row in read_rows(tmp_path / "stability.jsonl")] == ["implicit_rd"]


def test_a_run_that_cannot_be_read_is_passed_over_unless_it_was_named(tmp_path, monkeypatch, capsys):
    for name in "a", "b":
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text('{"seeds": 1}')

    def subject(workdir, config):
        if workdir.name == "a":
            raise ValueError("of another version")

    def measure(subject, *, short):
        noise = {"layers": ["l"], "differences": [0.1], "ratios": [0.1], "lipschitz_up_to": [1.0], "bound": 1.0}
        about = {"architecture": "resnet", "dataset": "d", "seed": 0, "images": 4, "change": 0.1, "accuracy": 0.5}
        yield {"kind": "image noise", "strength": 2, **about, **noise}

    monkeypatch.setattr(robustness, "Subject", subject)
    monkeypatch.setattr(robustness, "measure", measure)
    monkeypatch.chdir(tmp_path)
    assert robustness.main(robustness.Config(out=tmp_path / "robustness")) is None
    assert "a: skipped: of another version" in capsys.readouterr().err
    assert [row["workdir"] for row in read_rows(tmp_path / "robustness.jsonl")] == ["runs/b"]
    with pytest.raises(ValueError, match="of another version"):
        robustness.main(robustness.Config((Path("runs/a"),), out=tmp_path / "robustness"))
    (tmp_path / "runs" / "b" / "result.json").unlink()
    with pytest.raises(ValueError, match="a finished run of a single seed, got none"):
        robustness.main(robustness.Config(out=tmp_path / "robustness"))


def test_where_growth_passes_the_limit():
    """The result is the largest h before the growth first exceeds the limit or overflows."""
    row = {"h": [0.1, 1, 10, 100], "growth": [1, 2, None, 3]}
    assert stability.bounded_up_to(row) == 1
    assert stability.bounded_up_to({**row, "growth": [1, 2, 3, 4]}) == 100
    assert stability.bounded_up_to({**row, "growth": [math.inf, 2, 3, 4]}) is None


def test_rounded_weights_lie_on_a_grid_of_the_given_bits():
    """At most 2^bits - 1 symmetric values occur, and the largest weight is one of them."""
    weights = {"w": jnp.linspace(-1, 0.5, 1000)}
    perturbed = perturbations.perturbed_weights(weights, {"bits": (4,), "weight noise": (50,)}, seed=0)
    rounded = {kind: tree["w"] for kind, _, tree in perturbed}
    values = np.unique(rounded["bits"])
    assert len(values) <= 15
    assert values[0] == -1
    np.testing.assert_allclose(values * 7, np.round(values * 7), atol=1e-6)
    spread = np.std(rounded["weight noise"] - weights["w"]) / np.sqrt(np.mean(weights["w"] ** 2))
    assert spread == pytest.approx(0.5, rel=0.1)


def test_at_least_one_image_is_measured():
    with pytest.raises(ValueError, match="--images must be at least 1, got 0"):
        stability.main(stability.Config(images=0))
