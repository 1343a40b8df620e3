"""Runs the programs as a user does: trains, damages, resumes and evaluates runs, and gives bad input."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args
from unittest.mock import ANY

import numpy as np
import pytest
from faults.subject import write_images

from experiments import evaluate, spectra
from experiments.common import training
from experiments.common.config import Architecture, DatasetName, RecipeName, TrainConfig, Width
from experiments.common.entry import STATUSES
from experiments.common.recipes import RECIPES
from lowcost import data, nn
from lowcost.nn import network, network_cost

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("image_folder"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Returns a function that starts `python -m experiments.NAME`; processes share a cache of compiled programs."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(name, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def finish(process):
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if "second" not in k and "share" not in k} for line in lines]


def test_a_run_and_what_is_done_with_it(program, image_folder, tmp_path, capsys):
    """A run is trained, reported as finished, evaluated, damaged and recovered; it writes TensorBoard's file."""
    whole = tmp_path / "whole"
    arguments = ("folder", "--data-dir", image_folder, "--epochs", 4, "--batch-size", 8, "--workdir", whole)
    arguments += ("--steps-per-block", 1, "--width", 8, 16)  # a network that compiles quickly
    code, output = finish(program("train", *arguments, "--tensorboard"))
    assert code == 0, output
    result = json.loads((whole / "result.json").read_text())
    one_step = network("implicit_rd", (8, 16), 2, steps_per_block=1, kernel_size=5)
    assert result["weights"] == network_cost(one_step, (16, 16, 3)).weights
    assert result["test_accuracy"] == rows(whole)[-1]["test_accuracy"]
    assert result["test_images"] == 18
    assert result["peak_memory_gib"] < 3
    assert (whole / "curves.png").stat().st_size > 1000
    assert "test accuracy" in output
    [events] = (whole / "tensorboard").iterdir()
    assert b"test_accuracy" in events.read_bytes()
    undisturbed = rows(whole)

    before = (whole / "result.json").read_bytes()
    same = {"epochs": 4, "batch_size": 8, "steps_per_block": 1, "width": (8, 16)}
    config = TrainConfig("folder", data_dir=image_folder, workdir=whole, **same)
    assert training.run(config) == 0  # a finished run is reported and not changed
    assert "this run is finished" in capsys.readouterr().out
    assert (whole / "result.json").read_bytes() == before

    code, output = finish(program("evaluate", "--workdir", whole))
    assert code == 0, output
    assert f"accuracy {result['test_accuracy']:.2%}" in output
    spectra.main(spectra.SpectraConfig(whole))
    assert "block2_step1" in capsys.readouterr().out

    other = write_images(tmp_path / "other", names=("night", "day"))
    classes = r"was trained on classes \['dark', 'light'\], the data has \['day', 'night'\]"
    with pytest.raises(ValueError, match=classes):
        evaluate.main(evaluate.EvaluateConfig(whole, other))

    (whole / "result.json").write_text(json.dumps(result | {"digest": "of an older state"}))
    assert training.run(config) == 0  # as if killed before it wrote the new result
    assert "this run is finished" not in capsys.readouterr().out
    assert json.loads((whole / "result.json").read_text())["digest"] == result["digest"]

    empty_newest_checkpoint(whole)
    code, output = finish(program("train", *arguments))
    assert code == 0, output
    assert "is damaged (" in output
    assert "set aside as damaged-24-1, using step 18" in output
    assert f"resuming from step 18 in {whole}" in output
    assert [row["epoch"] for row in rows(whole)] == [1, 2, 3, 4]
    assert rows(whole) == undisturbed
    assert json.loads((whole / "result.json").read_text())["digest"] == result["digest"]

    assert empty_newest_checkpoint(whole) == "24"
    assert empty_newest_checkpoint(whole, but="24") == "18"
    left = f"{whole / 'checkpoints'} must hold a valid checkpoint, got damaged ones only; put back a copy of one"
    code, output = finish(program("evaluate", "--workdir", whole))
    assert code == 2
    assert f"error: {left}" in output
    assert training.run(config) == 2
    assert f"error: {left}" in capsys.readouterr().err
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"damaged-24-1", "damaged-24-2", "damaged-18-1"}
    with pytest.raises(ValueError, match=left):
        evaluate.main(evaluate.EvaluateConfig(whole))


def test_several_seeds_with_the_fast_recipe(image_folder, tmp_path, capsys):
    """Result and screen show mean, deviation and the figures of each network, evaluated at the end."""
    fixed = {"data_dir": image_folder, "epochs": 2, "batch_size": 8, "recipe": "fast", "evaluate_every": 3}
    config = TrainConfig("folder", steps_per_block=1, width=(8, 16), workdir=tmp_path, seeds=2, seed=5, **fixed)
    assert training.run(config) == 0
    output = capsys.readouterr().out
    result, (first, last) = json.loads((tmp_path / "result.json").read_text()), rows(tmp_path)
    assert "test_accuracy" not in first
    assert "train_accuracy" in first
    one = network("implicit_rd", (8, 16), 2, steps_per_block=1, kernel_size=5)
    assert result["weights"] == network_cost(one, (16, 16, 3)).weights
    assert result["test_accuracies"] == last["test_accuracy_seeds"]
    assert result["test_accuracy"] == last["test_accuracy"] == np.mean(result["test_accuracies"])
    assert result["test_accuracy_std"] == pytest.approx(np.std(result["test_accuracies"], ddof=1))
    assert f"{result['test_accuracy']:.2%} ± {result['test_accuracy_std']:.2%} of 18 images, 2 seeds" in output
    assert last["train_loss_seeds"][0] != last["train_loss_seeds"][1]
    evaluate.main(evaluate.EvaluateConfig(tmp_path))
    output = capsys.readouterr().out
    for i, accuracy in enumerate(result["test_accuracies"]):
        assert f"seed {5 + i}: accuracy {accuracy:.2%}" in output
    assert f"mean: accuracy {result['test_accuracy']:.2%} ± {result['test_accuracy_std']:.2%}" in output
    assert "ensemble: accuracy " in output
    spectra.main(spectra.SpectraConfig(tmp_path))
    assert "the first of 2 networks, seed 5" in capsys.readouterr().out


def test_what_one_run_compiled_the_next_one_reads(image_folder, tmp_path):
    """The cache is next to the work directories unless the user chooses another place."""
    code = "import jax, sys; from experiments.common.runs import prepare;"
    code += "from experiments.common.config import TrainConfig;"
    code += "from pathlib import Path; prepare(TrainConfig(workdir=Path(sys.argv[1]), batch_size=8));"
    code += "print(jax.config.jax_compilation_cache_dir)"
    run = [sys.executable, "-c", code, str(TrainConfig(workdir=tmp_path / "a").directory())]
    output = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(tmp_path / ".lowcost-cache" / "compiled")


def empty_newest_checkpoint(workdir, but=None):
    """Empties the files of its weights and returns its name."""
    names = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal() and path.name != but]
    newest = workdir / "checkpoints" / max(names, key=int)
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    return newest.name


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_needs_no_heavy_imports(name):
    """`--help` needs no JAX and less than 3 s of processor time; it shows the command, and the statuses at the end."""
    code = f"import runpy, sys; sys.argv = ['{name}', '--help']\ntry:\n"
    code += f"    runpy.run_module('experiments.{name}', run_name='__main__', alter_sys=True)\n"
    code += "except SystemExit:\n    sys.exit(sum(name in sys.modules for name in ('jax', 'flax', 'matplotlib')))"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin < 3
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m experiments.{name} ")
    assert done.stdout.endswith(STATUSES)


def test_names_of_networks_and_data_are_those_of_the_library():
    """The flags have a list of their own, because `--help` must not import JAX."""
    assert set(get_args(Architecture)) == set(nn.ARCHITECTURES)
    assert get_args(Width) == get_args(nn.Width)
    assert set(get_args(DatasetName)) == set(data.SOURCES)
    assert set(get_args(RecipeName)) == set(RECIPES)


@pytest.fixture
def error(capsys, tmp_path):
    """Runs `train` in this process and returns its one-line error."""

    def run(**options):
        config = TrainConfig(**{"workdir": tmp_path / "run", "batch_size": 8, **options})
        assert training.run(config) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


def test_half_of_the_flags_for_many_processes(program):
    code, output = finish(program("train", "digits", "--cluster.num-processes", 2))
    assert code == 2
    assert output.startswith("error: several processes need all of --cluster.coordinator HOST:PORT")
    assert output.count("\n") == 1


def test_missing_package(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "sklearn.datasets" in error()


def test_missing_folder(error, tmp_path):
    assert str(tmp_path / "none") in error(dataset="folder", data_dir=tmp_path / "none")
    assert "data_dir" in error(dataset="folder")


def test_empty_class(error, tmp_path):
    (write_images(tmp_path / "p") / "train" / "medium").mkdir()
    assert "medium" in error(dataset="folder", data_dir=tmp_path / "p")


def test_class_in_test_but_not_in_train(error, tmp_path):
    image_folder = write_images(tmp_path / "p")
    (image_folder / "train" / "dark").rename(tmp_path / "elsewhere")
    assert "dark" in error(dataset="folder", data_dir=image_folder)


def test_unreadable_image(error, tmp_path):
    path = write_images(tmp_path / "p") / "train" / "dark" / "0.png"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in error(dataset="folder", data_dir=tmp_path / "p")


def test_devices_that_do_not_divide_the_batch(error):
    assert "batch_size must be divisible by the 4 devices" in error(batch_size=10)


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("seed", 2**64), ("epochs", 0), ("batch_size", 0), ("image_size", 8), ("keep", 0), ("seeds", 0)],
)
def test_numbers_out_of_range(error, tmp_path, option, value):
    assert str(value) in error(**{option: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["[1]", "{", '{"data": {}}', '{"data": {}, "data_dir": null, "new": 1}'])
def test_a_damaged_configuration(error, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    assert str(tmp_path / "run") in error()
    with pytest.raises(ValueError, match=str(tmp_path / "run")):
        evaluate.main(evaluate.EvaluateConfig(workdir=tmp_path / "run"))


def test_batch_larger_than_the_data(error):
    assert "1437 training examples" in error(batch_size=2000)


def test_stencil_larger_than_the_grid(error, image_folder):
    message = error(dataset="folder", data_dir=image_folder, image_size=8)
    assert "at least 9 points, because 3 blocks halve the grid" in message


def test_another_configuration_is_refused_and_nothing_is_touched(error, tmp_path):
    from experiments.common.workdir import write_or_compare

    config = TrainConfig(workdir=tmp_path / "run", batch_size=8, width="B")
    (tmp_path / "run").mkdir()
    write_or_compare(config, {"schedule": "halving", "flip": "never"}, {"train": 1}, {}, {})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")} | {tmp_path / "run" / "lock": ANY}
    message = error()
    for difference in (
        "width is B there and A here",
        "data.train is 1 there and 1437 here",
        "ingredients.flip is never there and random here",
    ):
        assert difference in message
    assert "--workdir" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("program", [evaluate, spectra])
def test_a_directory_without_a_run(program, tmp_path):
    configuration = getattr(program, f"{program.__name__.split('.')[-1].capitalize()}Config")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no run"):
        program.main(configuration(workdir=tmp_path))
