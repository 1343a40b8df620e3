"""A work directory becomes a network again, without data, optimiser or `experiments`, verified as for a resume."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from lowcost.deploy import loading
from lowcost.deploy.input_steps import preprocessing
from lowcost.train.checkpoint import Checkpoints, digest
from lowcost.train.state import TrainState

CONFIG: dict = {
    "dataset": "folder",
    "architecture": "implicit_rd",
    "width": [4, 8],
    "recipe": "paper",
    "epochs": 3,
    "train_images": None,
    "batch_size": 10,
    "seed": 7,
    "steps_per_block": 1,
    "h": 0.8,
    "dtype": "float32",
    "ingredients": {"average": None},
    "data": {"classes": list("abcde"), "image_shape": [8, 8, 1], "train": 25},
    "settings": {},
    "data_dir": "/nowhere",
}
"""The first fields that config.json had; later versions have more."""
RESULT = {"test_accuracies": [0.5, 0.25]}


@pytest.fixture
def run(trained, tmp_path):
    """Returns (step, result.json, changes of config.json) → work directory of a run, and its state."""

    def make(step=6, result=RESULT, average=None, best=None, **changes):
        workdir = tmp_path / "run"
        workdir.mkdir(exist_ok=True)
        config = CONFIG | changes | {"ingredients": {"average": 0.9 if average else None}}
        (workdir / "config.json").write_text(json.dumps(config))
        _, variables = trained("implicit_rd", (8, 8, 1), **changes.get("options", {}))
        seeds = (config["seeds"],) if config.get("seeds", 1) > 1 else ()
        factors = np.arange(1, 1 + (seeds or (1,))[0], dtype=np.float32)

        def leading(x):
            return jnp.asarray(np.stack([factor * x for factor in factors]) if seeds else x)

        variables = jax.tree.map(leading, variables)
        zero = jnp.zeros(seeds)
        state = TrainState(
            step=jnp.full(seeds, step, jnp.int32),
            key=jnp.zeros((*seeds, 2), jnp.uint32),
            **variables,
            average=average and jax.tree.map(lambda x: average * x, variables),
            opt_state={"moments": variables["params"]},
            metrics={"loss": zero},
            skipped=zero,
            skipped_in_a_row=zero,
            best=best and {"variables": jax.tree.map(lambda x: best * x, variables), "score": zero, "epoch": zero},
        )
        saved = Checkpoints(workdir / "checkpoints", run=loading.identity(workdir))
        saved.save(step, state, {})
        saved.close()
        if result is not None:
            (workdir / "result.json").write_text(json.dumps({**result, "digest": digest(state)}))
        return workdir, state

    return make


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), *jax.device_get((one, other))))


@pytest.mark.parametrize("average", [None, 0.5])
@pytest.mark.parametrize("changes", [{}, {"kernel_size": 3, "task": "classes", "new": 1}], ids=["old", "new"])
def test_a_run_is_loaded_from_its_files_alone(run, average, changes):
    workdir, state = run(average=average, **changes)
    loaded = lowcost.load(workdir)
    assert same(loaded.variables, state.variables)
    assert not average or not same(loaded.variables["params"], state.params)
    assert loaded.net == lowcost.nn.network("implicit_rd", (4, 8), 5, h=0.8, steps_per_block=1)
    assert (loaded.classes, loaded.image_shape) == (tuple("abcde"), (8, 8, 1))
    assert (loaded.task, loaded.temperature, loaded.scale) == ("classes", 1.0, None)
    assert loaded.preprocessing == preprocessing((8, 8, 1))
    weights = sum(x.size for x in jax.tree.leaves(loaded.variables["params"]))
    card = {"network": "implicit_rd 4-8", "dataset": "folder", "recipe": "paper", "epochs": "3", "seed": "7"}
    card |= {"steps": "6", "weights": str(weights), "test_accuracy": "0.5"}
    assert loaded.card == card | {"lowcost": lowcost.__version__, "limits": loading.LIMITS}


def test_a_run_of_floats_or_of_masked_signals(run):
    """config.json gives moments, mask and dtype; runs without these fields had images of uint8."""
    data = CONFIG["data"] | {"moments": [[0.5], [2.0]], "dtype": "float32"}

    def loaded(**changes):
        workdir, _ = run(data=data | changes)
        try:
            return lowcost.load(workdir)
        finally:
            shutil.rmtree(workdir)

    one = loaded()
    assert (one.moments, one.masked, one.dtype) == (((0.5,), (2.0,)), False, "float32")
    assert "standardises" in one.preprocessing
    assert loaded(moments=None, dtype="uint16").dtype == "uint16"
    assert "divide by 65535, to [0, 1]; the network itself standardises" in loaded(dtype="uint16").preprocessing
    for changes in (
        *({"moments": m} for m in ([[0.5, 1], [2, 1]], [[0.5], [0.0]], [["a"], [1]], 3, "ab", {})),
        *({"masked": True}, {"dtype": "float64"}, {"dtype": 3}, {"dtype": "uint8"}),
    ):
        with pytest.raises(ValueError, match=r"config\.json|must") as error:
            loaded(**changes)
        assert str(error.value).isprintable(), changes


def test_of_several_seeds_the_first_is_loaded(run):
    workdir, state = run(seeds=2)
    assert same(lowcost.load(workdir).variables, jax.tree.map(lambda x: x[0], jax.device_get(state.variables)))


def test_what_a_result_says_of_the_outputs(run):
    scale = [[1.0] * 5, [2.0] * 5]
    result = {"temperatures": [1.5], "test_accuracies": None, "test_losses": [0.25]}
    loaded = lowcost.load(run(result=result, task="values", data=CONFIG["data"] | {"scale": scale})[0])
    assert (loaded.task, loaded.temperature, loaded.scale) == ("values", 1.5, ((1.0,) * 5, (2.0,) * 5))
    assert "test_accuracy" not in loaded.card
    assert loaded.card["test_loss"] == "0.25"


def test_the_best_epoch_of_a_run_that_ended_early(run):
    """The best variables are loaded, and result.json states the step at which the run ended."""
    workdir, state = run(step=4, result=RESULT | {"steps": 4}, best=2.0, patience=1)
    loaded = loading.load_run(workdir, finished=True)
    assert same(loaded.variables, state.chosen)
    assert not same(loaded.variables, state.variables)


@pytest.mark.parametrize("temperatures", [["1"], [0], [1.0, 1.0], "1", 1.0])
def test_temperatures_of_a_damaged_result_are_refused(run, temperatures):
    with pytest.raises(ValueError, match=r"temperatures in .*result\.json must be a list of 1 numbers above 0"):
        lowcost.load(run(result={"temperatures": temperatures})[0])


def test_a_run_is_verified_as_for_a_resume(run, tmp_path, capsys):
    """Falls back to an older checkpoint, refuses those of other runs, changes nothing."""
    run(3, result=None)
    workdir, _ = run(6)
    config, result, checkpoints = (workdir / name for name in ("config.json", "result.json", "checkpoints"))
    before = config.read_text()
    config.write_text(before.replace('"seed": 7', '"seed": 8'))
    with pytest.raises(ValueError, match="must be a checkpoint of seed 8, got seed 7"):
        lowcost.load(workdir)
    config.write_text(before.replace('"h": 0.8', '"h": 0.9'))
    with pytest.raises(ValueError, match="must be a checkpoint of configuration"):
        lowcost.load(workdir)
    config.write_text(before)
    whole = result.read_text()
    result.write_text(json.dumps(json.loads(whole) | {"digest": "of another"}))
    with pytest.raises(ValueError, match=r"result\.json must be of the run's last checkpoint, got the digest"):
        lowcost.load(workdir)
    for change in ({"chosen": None}, {"test_accuracies": -1}):
        result.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(ValueError, match=r"result\.json in .* is damaged \("):
            lowcost.load(workdir)
    result.write_text(whole)
    largest = max((checkpoints / "6").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1])
    older = lowcost.load(workdir)  # result.json does not describe it
    assert (older.card["steps"], "test_accuracy" in older.card, older.temperature) == ("3", False, 1.0)
    assert "6 is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in checkpoints.iterdir()) == ["3", "6"]
    with pytest.raises(ValueError, match=r"the last checkpoint of .*, of step 6, is damaged"):
        loading.load_run(workdir, finished=True)
    largest.write_bytes(content)
    assert loading.load_run(workdir, finished=True).card["steps"] == "6"
    result.unlink()
    assert "test_accuracy" not in lowcost.load(workdir).card
    with pytest.raises(ValueError, match="has not finished training"):
        loading.load_run(workdir, finished=True)


def test_directories_that_hold_no_run_are_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        lowcost.load(tmp_path)
    workdir, _ = run()
    (workdir / "checkpoints").rename(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        lowcost.load(workdir)
    (tmp_path / "checkpoints").rename(workdir / "checkpoints")
    for name, value in (
        *(("architecture", None), ("architecture", "other"), ("width", 4), ("width", "Z"), ("h", "1"), ("epochs", [])),
        *(("batch_size", "10"), ("seeds", "2"), ("steps_per_block", 0), ("dtype", "int32"), ("dtype", "none")),
        *(("data", {}), ("data", 3), ("data", CONFIG["data"] | {"classes": 3, "train": 25}), ("settings", 1)),
    ):
        config = {key: x for key, x in (CONFIG | {name: value}).items() if x is not None}
        (workdir / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config.json|must") as error:
            lowcost.load(workdir)
        assert str(error.value).isprintable(), (name, value)
    for content in ("", "{", "[]", "[" * 100_000):
        (workdir / "config.json").write_text(content)
        with pytest.raises(ValueError, match=f"{workdir / 'config.json'} .*; put back the run's own config.json"):
            lowcost.load(workdir)
