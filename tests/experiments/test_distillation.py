"""Tests distillation: which networks teach, which are refused, and a run that resumes only with the same teacher."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal

from experiments.common import distillation, runs, training
from experiments.common.config import TrainConfig
from lowcost import data
from lowcost.deploy.loading import load_run
from lowcost.deploy.packaged import save
from lowcost.nn import network

NET = network("linear_mix", (4,), 10, steps_per_block=1)
DIGITS = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def variables():
    """Returns the variables of two networks for the digits."""
    init = jax.jit(lambda key: NET.init(key, jnp.zeros((1, 8, 8, 1))))
    return [jax.device_get(init(jax.random.key(seed))) for seed in (5, 6)]


@pytest.fixture(scope="module")
def finished(variables, tmp_path_factory):
    """Returns the configuration of a finished run of two seeds, whose teacher is a file."""
    folder = tmp_path_factory.mktemp("runs")
    save(folder / "teacher.safetensors", NET, variables[0], classes=DIGITS, image_shape=(12, 12, 1))
    fields = {"width": (8,), "steps_per_block": 1, "train_images": 40, "batch_size": 20, "epochs": 1, "seeds": 2}
    fields |= {"teacher": (str(folder / "teacher.safetensors"),), "workdir": folder / "run"}
    config = TrainConfig(**fields)
    assert training.run(config) == 0
    return config


def test_a_run_records_its_teacher(finished):
    content, result = (json.loads((finished.workdir / name).read_text()) for name in ("config.json", "result.json"))
    digest, _ = distillation.teachers(finished, data.load("digits"))
    assert content["data"]["teacher"] == digest
    assert content["teacher"] == result["teacher"] == list(finished.teacher)
    assert load_run(finished.workdir).card["teacher"] == finished.teacher[0]


def test_another_teacher_is_refused_and_the_same_one_resumes(finished, variables, tmp_path, capsys):
    """The file has the same name and other weights."""
    shutil.copytree(finished.workdir, tmp_path / "run")
    copy = dataclasses.replace(finished, workdir=tmp_path / "run")
    path = Path(finished.teacher[0])
    content = path.read_bytes()
    save(path, NET, variables[1], classes=DIGITS, image_shape=(12, 12, 1))
    assert training.run(copy) == 2
    assert "got another: data.teacher is " in capsys.readouterr().err
    path.write_bytes(content)
    assert training.run(copy) == 0
    assert "nothing was left to do" in capsys.readouterr().out


def test_all_seeds_of_a_run_teach(finished):
    """They teach together with another source, in the order of the flag."""
    config = dataclasses.replace(finished, teacher=(str(finished.workdir), *finished.teacher))
    _, teachers = distillation.teachers(config, data.load("digits"))
    _, state = runs.reopen(finished.workdir, None)
    assert [teacher.net.channels for teacher in teachers] == [(8,), (8,), (4,)]
    for index, teacher in enumerate(teachers[:2]):
        expected = jax.tree.map(lambda x, index=index: np.asarray(x)[index], state.chosen)
        assert_trees_all_equal(teacher.variables, expected)
        assert load_run(finished.workdir, index=index).card["seed"] == str(index)


def test_seeds_share_what_is_no_batch():
    step = runs._of_each_seed(lambda state, x, factor: state + factor.sum() * x)
    state = step(jnp.arange(2.0), jnp.ones(2), factor=jnp.arange(3.0))
    np.testing.assert_array_equal(state, [3, 4])


def dataset(names=DIGITS, shape=(12, 12, 1), dtype=np.uint8):
    split = data.Split(np.zeros((len(names), *shape), dtype), np.arange(len(names), dtype=np.int32))
    return data.Dataset("folder", split, split, tuple(names), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": DIGITS[::-1]}, "class 0 9, as the run has, got 0;"),
        ({"names": DIGITS[1:]}, "number of classes 9, as the run has, got 10;"),
        ({"shape": (16, 12, 1)}, "image shape 16 x 12 x 1, as the run has, got 12 x 12 x 1;"),
        ({"shape": (12, 12, 3)}, "image shape 12 x 12 x 3, as the run has, got 12 x 12 x 1;"),
        ({"dtype": np.float32}, "numbers float32, as the run has, got uint8;"),
    ],
)
def test_a_teacher_for_other_classes_or_images_is_refused(finished, change, message):
    distillation.teachers(finished, dataset())
    with pytest.raises(ValueError, match=f"--teacher .*teacher.safetensors must have {message} choose another"):
        distillation.teachers(finished, dataset(**change))


def test_a_damaged_teacher_is_refused_in_one_line(finished, tmp_path):
    shutil.copytree(finished.workdir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"seeds": 2', '"seeds": {}'))
    with pytest.raises(ValueError, match=r"--teacher .* cannot be loaded: .* put back the run's own"):
        distillation.teachers(dataclasses.replace(finished, teacher=(str(path.parent),)), dataset())


def test_teachers_need_classes():
    with pytest.raises(ValueError, match="--teacher needs --task classes, got tags; leave it out"):
        distillation.check(TrainConfig(teacher=("any",), task="tags"))
