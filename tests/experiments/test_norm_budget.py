"""Runs with --norm-budget keep to it in every form of the network, and the program compares budgets."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from experiments import norm_budget
from experiments.common import datasets, fine_tuning, runs, training
from experiments.common.config import TrainConfig
from experiments.common.perturbations import sensitivities
from experiments.common.recipes import Recipe
from lowcost.nn import network, stability_report

SMALL = {"width": (4,), "steps_per_block": 1, "train_images": 200, "epochs": 2}
AVERAGED = Recipe(average=0.9)


def feed_of(ready):
    """Returns the first batch."""
    rows = ready.indices(0)
    train = ready.dataset.train
    return train.images[rows][None], train.labels[rows][None], rows[None]


def test_a_run_keeps_to_its_budget(tmp_path, capsys):
    """The bound holds for the averages of each seed, and from the start of a further run with a smaller budget."""
    config = TrainConfig(norm_budget=20.0, seeds=2, workdir=tmp_path / "run", **SMALL)
    assert training.run(config, AVERAGED) == 0
    ready, _ = runs.reopen(config.directory(), None)
    assert ready.recipe == AVERAGED  # the chosen variables are averages
    for seed in (0, 1):
        loaded = lowcost.deploy.loading.load_run(config.directory(), index=seed)
        assert loaded.net.fixed_scale
        bound = stability_report(loaded.net, loaded.variables, loaded.image_shape).lipschitz
        assert 1 < bound <= 20
        images = ready.dataset.test.images[:5] / np.float32(255)
        observed = np.asarray(sensitivities(loaded.net, loaded.variables, images))
        assert (observed > 0).all()
        assert (observed <= bound).all()
    frozen = {"freeze": ("block1",), "init_from": str(config.directory()), "workdir": tmp_path / "smaller"}
    smaller = runs.prepare(dataclasses.replace(config, norm_budget=2.0, seeds=1, **frozen), AVERAGED)
    smaller = smaller._replace(loaded=fine_tuning.weights(smaller.config, smaller.net, smaller.dataset))
    start = smaller.start()
    done = smaller.train_steps(smaller.start(), 1, *feed_of(smaller))
    for state in (start, done):
        for variables in ({"params": state.params, "batch_stats": state.batch_stats}, state.average):
            assert stability_report(smaller.net, variables, smaller.dataset.image_shape).lipschitz <= 2
    for name in start.params:
        same = jax.tree.map(lambda x, y: bool((x == y).all()), start.params[name], done.params[name])
        assert all(jax.tree.leaves(same)) == name.startswith("block1")
    capsys.readouterr()
    assert training.run(dataclasses.replace(config, norm_budget=30.0), AVERAGED) != 0
    assert "norm_budget is 20.0 there and 30.0 here" in capsys.readouterr().err
    unlike = TrainConfig(init_from=str(config.directory()), workdir=tmp_path / "other", **SMALL)
    assert training.run(unlike) != 0
    assert "must hold a network with --norm-budget none, got a number; change" in capsys.readouterr().err
    too_small = dataclasses.replace(config, norm_budget=0.01, workdir=tmp_path / "small")
    assert training.run(too_small) != 0
    assert "error: --norm-budget must be finite and above 0." in capsys.readouterr().err


def test_the_program_compares_budgets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"width": (4, 8), "steps_per_block": 1, "train_images": 200, "epochs": 1, "seeds": 1, "sample": 5}
    config = norm_budget.Config(budgets=(5.0,), recipe="paper", **options)
    assert norm_budget.main(config) == 0
    text = (tmp_path / "runs/results/norm_budget.md").read_text()
    without, with_budget = (line for line in text.splitlines() if line.startswith(("| none", "| 5")))
    assert "200 training images" in text
    assert float(with_budget.split("|")[3].replace(",", "")) <= 5
    assert float(without.split("|")[3].replace(",", "")) > 5
    _, run = norm_budget.runs_of(config)
    for epsilon, share in ((0.0, None), (1e9, 0.0)):
        (row,) = norm_budget.measure(run, dataclasses.replace(config, epsilon=epsilon))
        assert row["certified"] == (row["accuracy"] if share is None else share)
    assert norm_budget.main(config) == 0  # finished runs are skipped
    assert "epoch 1/1" not in capsys.readouterr().out.partition("Norm budgets")[2]


def test_the_sensitivity_is_the_norm_of_the_jacobian():
    net = network("implicit_rd", (2, 4), 3, steps_per_block=1)
    images = jax.random.uniform(jax.random.key(1), (3, 8, 6, 1))
    variables = jax.jit(net.init)(jax.random.key(0), images)
    jacobians = jax.jit(jax.vmap(jax.jacobian(lambda x: net.apply(variables, x[None])[0])))(images)
    expected = jnp.linalg.norm(jacobians.reshape(3, 3, -1), ord=2, axis=(-2, -1))
    np.testing.assert_allclose(sensitivities(net, variables, images, 200), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "masked", "message"),
    [
        ("tags", False, "must have one class per image, got labels for the task tags; use others"),
        ("classes", True, "signals must have one length, got different ones; resample them with --length N"),
    ],
)
def test_other_data_are_refused_before_training(task, masked, message, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load", lambda run: SimpleNamespace(task=task, masked=masked))
    with pytest.raises(ValueError, match=message):
        norm_budget.main(norm_budget.Config(out=tmp_path / "out"))


@pytest.mark.parametrize(
    "flags", [{"budgets": (-1.0,)}, {"budgets": (5.0, 5.0)}, {"epsilon": -1.0}, {"epsilon": math.nan}], ids=str
)
def test_flags_out_of_range_are_refused_before_training(flags):
    (name,) = flags
    with pytest.raises(ValueError, match=f"--{name} must be "):
        norm_budget.main(norm_budget.Config(**flags))
