"""Tests fine-tuning: what is loaded, frozen and slowed, and a run that stops early and resumes."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from weights import as_if_trained

from experiments.common import fine_tuning, runs, training
from experiments.common.config import TrainConfig
from experiments.common.description import describe
from experiments.common.setup import Setup
from experiments.common.workdir import write_or_compare
from lowcost.data import Dataset, Split
from lowcost.deploy.packaged import save
from lowcost.nn import network
from lowcost.train.calibration import fit_temperature
from lowcost.train.state import create_state


def test_frozen_layers_do_not_move_and_loaded_ones_move_slowly():
    params = {
        name: jnp.ones(3) for name in ("opening", "block1_step1", "block1_pooling", "block10_step1", "classifier")
    }
    config = TrainConfig(init_from="any", freeze=("block1",), loaded_rate=0.25)
    optimizer = fine_tuning.slowed(optax.adamw(1.0, weight_decay=0.5), config)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    plain, _ = optax.adamw(1.0, weight_decay=0.5).update(params, optax.adamw(1.0).init(params), params)
    factors = {"opening": 0.25, "block1_step1": 0, "block1_pooling": 0, "block10_step1": 0.25, "classifier": 1}
    assert_trees_all_close(updates, {name: factors[name] * plain[name] for name in params})
    everything = fine_tuning.slowed(optax.sgd(1.0), dataclasses.replace(config, freeze=("classifier,opening",)))
    assert not np.any(everything.update(params, everything.init(params), params)[0]["classifier"])


def dataset(names, task="classes"):
    """Returns black images of the digits' shape, one for each class or tag."""
    labels = np.arange(len(names), dtype=np.int32) if task == "classes" else np.eye(len(names), dtype=np.float32)
    split = Split(np.zeros((len(names), 12, 12, 1), np.uint8), labels)
    return Dataset("folder", split, split, tuple(names), (), task=task)


NET = network("implicit_rd", (4, 8), 3, steps_per_block=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a file with a network of the classes x, y and z, and its variables."""
    variables = jax.device_get(jax.jit(lambda key: NET.init(key, jnp.zeros((1, 8, 8, 1))))(jax.random.key(5)))
    path = tmp_path_factory.mktemp("source") / "net.safetensors"
    save(path, NET, variables, classes="xyz", image_shape=(8, 8, 1))
    return path, variables


def test_the_classifier_is_loaded_where_the_classes_are_the_same(source):
    """Names, order and task must be equal."""
    path, variables = source
    config = TrainConfig(init_from=str(path))
    assert_trees_all_equal(fine_tuning.weights(config, NET, dataset("xyz")), variables)
    for other in (("xzy",), ("abc",), ("xyz", "tags")):
        loaded = fine_tuning.weights(config, NET, dataset(*other))
        assert loaded["params"].keys() == variables["params"].keys() - {"classifier"}
        assert_trees_all_equal(loaded["batch_stats"], variables["batch_stats"])


def test_a_run_starts_from_the_loaded_weights(source):
    """Every seed, its average and its best have the loaded weights; a new classifier is that of the seed."""
    _, variables = source
    loaded = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "classifier"}}
    keys = jax.random.split(jax.random.key(0), 2)
    create = jax.vmap(lambda key: create_state(NET, optax.sgd(1.0), key, (8, 8, 1), average=True, best=True))
    before = jax.jit(create)(keys)
    state = fine_tuning.start(before, loaded)
    for there in (state.average, state.best["variables"], {"params": state.params, "batch_stats": state.batch_stats}):
        for seed in range(2):
            one = jax.tree.map(lambda x, seed=seed: x[seed], there)
            kernel = one["params"].pop("classifier")["kernel"]
            np.testing.assert_array_equal(kernel, before.params["classifier"]["kernel"][seed])
            assert_trees_all_equal(one, loaded)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"architecture": "explicit_rd"}, ("--architecture", "explicit_rd", "implicit_rd")),
        ({"width": (8, 16)}, ("--width", "8 16", "4 8")),
        ({"kernel_size": 5}, ("--kernel-size", 5, 3)),
        ({"steps_per_block": 2}, ("--steps-per-block", 2, 1)),
        ({"h": 0.5}, ("--h", 0.5, 1.0)),
        ({"zero_mean": True}, ("--zero-mean", True, False)),
        ({"masked": True}, ("mask", "yes", "no")),
    ],
)
def test_weights_of_another_network_are_refused(source, change, got):
    fields = {"architecture": "implicit_rd", "width": (4, 8), "kernel_size": 3, "steps_per_block": 1, **change}
    net = network(fields.pop("architecture"), fields.pop("width"), 3, **fields)
    flag, here, there = got
    message = f"--init-from .* must hold a network with {flag} {here}, got {there}; change the flags or the data"
    with pytest.raises(ValueError, match=message):
        fine_tuning.weights(TrainConfig(init_from=str(source[0])), net, dataset("xyz"))


@pytest.mark.parametrize(("architecture", "size"), [("implicit_rd", 3), ("explicit_rd", 5)])
def test_stencils_are_as_large_as_in_the_loaded_network(architecture, size, tmp_path):
    """The size is that of the source, also if the run resumes without the file, or the source is a run."""
    net = network(architecture, (4, 8), 3, steps_per_block=1, kernel_size=size)
    path, fields = tmp_path / "net.safetensors", {"width": (4, 8), "steps_per_block": 1, "train_images": 40}
    save(path, net, as_if_trained(net, (9, 9, 1)), classes="xyz", image_shape=(9, 9, 1))
    fields |= {"batch_size": 20, "epochs": 1, "workdir": tmp_path / "run"}
    config = TrainConfig("digits", architecture, init_from=str(path), **fields)
    ready = runs.prepare(config)
    assert ready.config.kernel_size == size
    write_or_compare(ready.config, dataclasses.asdict(ready.recipe), describe(ready.dataset), {}, {})
    path.unlink()
    assert runs.prepare(config).config.kernel_size == size
    of_run = dataclasses.replace(config, init_from=str(config.directory()), workdir=tmp_path / "next")
    assert runs.prepare(of_run).config.kernel_size == size


def test_weights_of_another_grid_are_refused(source):
    """The source has stencils of two axes, and signals need one."""
    split = Split(np.zeros((3, 12, 1), np.uint8), np.arange(3, dtype=np.int32))
    signals = dataclasses.replace(dataset("xyz"), train=split, test=split)
    with pytest.raises(ValueError, match="with number of grid axes 1, got 2;"):
        fine_tuning.weights(TrainConfig(init_from=str(source[0])), NET, signals)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Returns the configuration and the result of a run on digits from other weights, with block1 frozen."""
    folder = tmp_path_factory.mktemp("runs")
    weights = folder / "weights.json"
    weights.write_text(json.dumps({str(k): 1 + k for k in range(10)}))
    fields = {"width": (4, 8), "steps_per_block": 1, "train_images": 200, "batch_size": 20, "epochs": 30}
    fields |= {"init_from": str(source[0]), "freeze": ("block1",), "loaded_rate": 0.5, "class_weights": str(weights)}
    fields |= {"validation_share": 0.3, "patience": 1, "evaluate_every": 50, "workdir": folder / "run"}
    config = TrainConfig(**fields)
    assert training.run(config) == 0
    return config, json.loads((folder / "run" / "result.json").read_text())


def restored(config):
    """Returns the run's set-up and state, reopened while its file of class weights is missing."""
    file = Path(config.class_weights)
    content = file.read_bytes()
    file.unlink()
    try:
        return runs.reopen(config.workdir, None)
    finally:
        file.write_bytes(content)


def test_a_run_ends_after_its_patience_and_reports_its_best_epoch(finished):
    """The figures are those of the best weights, though no epoch was evaluated on the test images."""
    config, result = finished
    rows = [json.loads(line) for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_accuracy"] for row in rows]
    best = 1 + int(np.argmax(scores))
    assert len(rows) == best + 1 < 30
    assert not any("test_loss" in row for row in rows)
    assert result["chosen"] == {"epochs": [best], "by": "validation accuracy"}
    ready, state = restored(config)
    logits = ready.outputs(state.chosen, ready.dataset.test.images)[0]
    assert result["test_accuracies"] == [pytest.approx(np.mean(logits.argmax(-1) == ready.dataset.test.labels))]
    assert result["test_accuracy"] == result["test_accuracies"][0]
    assert result["validation_images"] == len(ready.dataset.validation)
    assert result["train_images"] + result["validation_images"] == 200
    assert result["steps"] == len(rows) * ready.steps_per_epoch
    assert result["epochs"] == len(rows)
    logits, labels = ready.outputs(state.chosen, ready.dataset.validation.images)[0], ready.dataset.validation.labels
    assert np.mean(logits.argmax(-1) == labels) == pytest.approx(max(scores))
    assert result["temperatures"] == [round(fit_temperature(logits, labels), 4)]
    assert config.workdir.joinpath("curves.png").exists()


def test_frozen_weights_are_those_of_the_source(finished, source):
    """Frozen weights are equal bit for bit; all other weights and the statistics moved, except the new classifier."""
    variables, (_, state) = jax.device_get(source[1]), restored(finished[0])
    for layer, leaves in state.params.items():
        if layer == "classifier":
            assert leaves["kernel"].shape == (16, 10)
            continue
        for one, other in zip(*map(jax.tree.leaves, (leaves, variables["params"][layer])), strict=True):
            assert np.array_equal(one, other) == layer.startswith("block1_")
    before, after = variables["batch_stats"], state.batch_stats
    assert not any(map(np.array_equal, *map(jax.tree.leaves, (before, jax.device_get(after)))))


def test_a_run_that_keeps_its_best_resumes_as_if_nothing_had_happened(finished, tmp_path, capsys):
    """A run without its newest checkpoint resumes from the one before and gives the same result."""
    config, result = finished
    shutil.copytree(config.workdir, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    (tmp_path / "run" / "result.json").unlink()
    assert training.run(dataclasses.replace(config, workdir=tmp_path / "run")) == 0
    assert "resuming from step " in capsys.readouterr().out
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    same = ("digest", "chosen", "test_accuracies", "test_losses", "temperatures", "steps")
    assert [again[name] for name in same] == [result[name] for name in same]


def test_a_run_is_a_source_too(finished):
    """Its best weights are loaded, with the classifier for the digits and without it for other classes."""
    config, _ = finished
    ready, state = restored(config)
    again = dataclasses.replace(config, init_from=str(config.workdir), class_weights=None)
    loaded = fine_tuning.weights(again, ready.net, ready.dataset)
    assert_trees_all_equal(loaded, jax.device_get(state.chosen))
    others = fine_tuning.weights(again, ready.net, dataset("abcdefghij"))
    assert others["params"].keys() == loaded["params"].keys() - {"classifier"}


def test_figures_that_are_not_finite_have_a_result(finished, tmp_path, monkeypatch):
    """The losses are null in the file, and no temperature is fitted; the run is finished nevertheless."""
    config, _ = finished
    shutil.copytree(config.workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(Setup, "outputs", lambda *_: np.full((1, 60, 10), np.nan, np.float32))
    monkeypatch.setattr(Setup, "evaluate", lambda *_, **__: {"loss": np.inf, "accuracy": 0.5})
    assert training.run(dataclasses.replace(config, workdir=tmp_path / "run")) == 0
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (again["test_losses"], again["temperatures"], again["test_accuracy"]) == ([None], [1.0], 0.5)
