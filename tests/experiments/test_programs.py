"""The programs as a user runs them: train, interrupt, kill, resume, evaluate, and every bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, spectra, train
from experiments.config import TrainConfig

ROOT = Path(__file__).parents[2]


def write_pictures(directory, size=16, train=24, test=9, names=("dark", "light")):
    rng = np.random.default_rng(0)
    for part, count in {"train": train, "test": test}.items():
        for label, name in enumerate(names):
            (directory / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (size, size, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(directory / part / name / f"{i}.png")
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Starts `python -m experiments.NAME`; what one process compiled the next one reads from disk."""
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
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def wait_for_rows(process, workdir, count):
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text().splitlines()) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupted_and_killed_it_ends_as_undisturbed(program, pictures, tmp_path):
    """Ctrl-C, then kill -9, then to the end: the metrics of the uninterrupted run, bit for bit."""

    def arguments(workdir):
        return "folder", "--data-dir", pictures, "--epochs", 4, "--batch-size", 8, "--workdir", workdir

    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    code, output = finish(program("train", *arguments(whole)))
    assert code == 0, output
    result = json.loads((whole / "result.json").read_text())
    assert result["weights"] == 101_066 - 8 * 257  # Table 2's count with two classes instead of ten
    assert result["test_accuracy"] == rows(whole)[-1]["test_accuracy"]
    assert result["test_images"] == 18
    assert (whole / "curves.png").stat().st_size > 1000
    assert "test accuracy" in output

    process = program("train", *arguments(disturbed))
    wait_for_rows(process, disturbed, 1)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert "the same command goes on from there" in output

    process = program("train", *arguments(disturbed))
    wait_for_rows(process, disturbed, 2)
    process.kill()
    finish(process)

    code, output = finish(program("train", *arguments(disturbed)))
    assert code == 0, output
    assert rows(disturbed) == rows(whole)
    assert json.loads((disturbed / "result.json").read_text())["test_accuracy"] == result["test_accuracy"]

    before = (whole / "result.json").read_bytes()
    code, output = finish(program("train", *arguments(whole)))  # finished: says so again, and changes nothing
    assert code == 0, output
    assert "test accuracy" in output
    assert (whole / "result.json").read_bytes() == before

    code, output = finish(program("evaluate", "--workdir", whole))
    assert code == 0, output
    assert f"accuracy {result['test_accuracy']:.2%}" in output
    code, output = finish(program("spectra", "--workdir", whole))
    assert code == 0, output
    assert "block3_step4" in output

    other = write_pictures(tmp_path / "other", names=("night", "day"))
    code, output = finish(program("evaluate", "--workdir", whole, "--data-dir", other))
    assert code == 2
    assert "was trained on classes ['dark', 'light'], the data has ['day', 'night']" in output

    empty_newest_checkpoint(whole)
    code, output = finish(program("train", *arguments(whole)))
    assert code == 0, output
    assert "is damaged (" in output
    assert "set aside as damaged-24-1, going on from step 18" in output
    assert f"going on from step 18 in {whole}" in output
    assert [row["epoch"] for row in rows(whole)] == [1, 2, 3, 4]
    assert rows(whole) == rows(disturbed)
    assert json.loads((whole / "result.json").read_text())["test_accuracy"] == result["test_accuracy"]

    assert empty_newest_checkpoint(whole) == "24"
    assert empty_newest_checkpoint(whole, but="24") == "18"
    code, output = finish(program("train", *arguments(whole)))
    assert code == 2
    assert f"error: all checkpoints in {whole / 'checkpoints'} are damaged" in output
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"damaged-24-1", "damaged-24-2", "damaged-18-1"}
    code, output = finish(program("evaluate", "--workdir", whole))
    assert code == 2
    assert "holds no checkpoint yet" in output


def empty_newest_checkpoint(workdir, but=None):
    """Leaves no byte of its weights."""
    names = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal() and path.name != but]
    newest = workdir / "checkpoints" / max(names, key=int)
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    return newest.name


def test_help_needs_no_heavy_imports():
    """`--help` answers without JAX, in under 3 seconds."""
    code = "import sys; sys.argv = ['train', '--help']\ntry:\n    from experiments.train import main; main()\n"
    code += "except SystemExit:\n    sys.exit(sum(name in sys.modules for name in ('jax', 'flax', 'matplotlib')))"
    begin = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    assert time.monotonic() - begin < 3


@pytest.fixture
def error(monkeypatch, capsys, tmp_path):
    """Runs `train` in this process and returns its one-line error."""
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: None)

    def run(**options):
        config = TrainConfig(**{"workdir": tmp_path / "run", "batch_size": 8, **options})
        assert train.run(config) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


def test_missing_folder(error, tmp_path):
    assert str(tmp_path / "none") in error(dataset="folder", data_dir=tmp_path / "none")
    assert "data_dir" in error(dataset="folder")


def test_empty_class(error, tmp_path):
    (write_pictures(tmp_path / "p") / "train" / "medium").mkdir()
    assert "medium" in error(dataset="folder", data_dir=tmp_path / "p")


def test_class_in_test_but_not_in_train(error, tmp_path):
    pictures = write_pictures(tmp_path / "p")
    (pictures / "train" / "dark").rename(tmp_path / "elsewhere")
    assert "dark" in error(dataset="folder", data_dir=pictures)


def test_unreadable_image(error, tmp_path):
    path = write_pictures(tmp_path / "p") / "train" / "dark" / "0.png"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in error(dataset="folder", data_dir=tmp_path / "p")


def test_devices_that_do_not_divide_the_batch(error):
    assert "batch size 10 is not divisible by the 4 devices" in error(batch_size=10)


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("seed", 2**64), ("epochs", 0), ("batch_size", 0), ("image_size", 8), ("keep", 0)],
)
def test_numbers_out_of_range(error, tmp_path, option, value):
    assert str(value) in error(**{option: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["[1]", "{", '{"data": {}}', '{"data": {}, "data_dir": null, "new": 1}'])
def test_a_damaged_configuration(error, capsys, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    assert str(tmp_path / "run") in error()
    assert evaluate.run(evaluate.EvaluateConfig(workdir=tmp_path / "run")) == 2
    assert str(tmp_path / "run") in capsys.readouterr().err


def test_batch_larger_than_the_data(error):
    assert "1437 training images" in error(batch_size=2000)


def test_stencil_larger_than_the_grid(error, pictures):
    message = error(dataset="folder", data_dir=pictures, image_size=8)
    assert "stencil 3x3 must lie between 1 and the grid 2x2" in message


def test_another_configuration_is_refused_and_nothing_is_touched(error, tmp_path):
    from experiments.config import write_or_compare

    config = TrainConfig(workdir=tmp_path / "run", batch_size=8, width="B")
    write_or_compare(config, {"train": 1})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")}
    message = error()
    assert "width is B there and A here" in message
    assert "--workdir" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("main", [evaluate, spectra])
def test_a_directory_without_a_run(main, capsys, tmp_path):
    configuration = getattr(main, f"{main.__name__.split('.')[-1].capitalize()}Config")
    assert main.run(configuration(workdir=tmp_path)) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
