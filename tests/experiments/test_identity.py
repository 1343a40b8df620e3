"""A run is refused if its configuration, data, settings, checkpoints and result do not belong together."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from faults.subject import ROOT, Subject, error_of

from experiments import export
from experiments.common import classifiers, training
from experiments.common.config import TrainConfig
from experiments.common.runs import reopen, trained

SMALL = ("--width", 8, 16)  # a network that compiles quickly


def run(workdir, image_folder, **changes):
    fields = {
        "epochs": 1,
        "batch_size": 8,
        "steps_per_block": 1,
        "width": (8, 16),
        "workdir": workdir,
        "data_dir": image_folder,
        **changes,
    }
    return training.run(TrainConfig("folder", **fields))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns images and two finished runs on them, of seeds 0 and 1."""
    directory = tmp_path_factory.mktemp("runs")
    subject = Subject(directory, epochs=1)
    for seed in 0, 1:
        subject.finish(directory / f"seed{seed}", "--seed", seed, *SMALL)
    return subject


@pytest.fixture
def copy(runs, tmp_path):
    """Returns a copy of the run of seed 0, and one of the images."""
    shutil.copytree(runs.directory / "seed0", tmp_path / "run")
    shutil.copytree(runs.image_folder, tmp_path / "image_folder")
    return tmp_path / "run", tmp_path / "image_folder"


def refused(capsys, code):
    """Returns the one line of a command that ended with exit status 2."""
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_finished_run_without_its_checkpoints_is_not_trained_anew(copy, capsys):
    workdir, image_folder = copy
    shutil.rmtree(workdir / "checkpoints")
    kept = [workdir / name for name in ("result.json", "metrics.jsonl", "curves.png")]
    before = [path.read_bytes() for path in kept]
    line = refused(capsys, run(workdir, image_folder))
    assert f"{workdir} must hold the checkpoints of its finished run, got result.json without any; put them" in line
    assert [path.read_bytes() for path in kept] == before


def test_a_run_with_damaged_checkpoints_alone_is_not_trained_anew(copy, capsys):
    workdir, image_folder = copy
    (workdir / "result.json").unlink()
    [newest] = (workdir / "checkpoints").iterdir()
    newest.rename(newest.with_name("damaged-15-1"))
    line = refused(capsys, run(workdir, image_folder))
    assert "must hold a valid checkpoint, got damaged ones only; put back a copy of one, or" in line


def test_checkpoints_of_another_seed_are_refused(runs, copy, capsys):
    """Training and programs that read a run refuse them."""
    workdir, image_folder = copy
    shutil.rmtree(workdir / "checkpoints")
    shutil.copytree(runs.directory / "seed1" / "checkpoints", workdir / "checkpoints")
    assert "15 must be a checkpoint of seed 0, got seed 1; put back the run's own" in refused(
        capsys, run(workdir, image_folder)
    )
    with pytest.raises(ValueError, match="must be a checkpoint of seed 0, got seed 1"):
        trained(workdir)


def test_a_result_of_another_run_is_refused(runs, copy, tmp_path):
    """`evaluate`, `export` and `predict` compare its digest with that of the last checkpoint."""
    workdir, image_folder = copy
    shutil.copy(runs.directory / "seed1" / "result.json", workdir / "result.json")
    message = r"result\.json must be of the run's last checkpoint, got the digest of another state; put back"
    with pytest.raises(ValueError, match=message):
        reopen(workdir, image_folder)
    with pytest.raises(ValueError, match=message):
        export.main(export.ExportConfig(workdir=workdir, out=tmp_path / "net.onnx"))
    assert not (tmp_path / "net.onnx").exists()
    with pytest.raises(ValueError, match=message):
        classifiers.load(workdir=workdir)


def test_images_exchanged_between_stop_and_resume_are_refused(copy, capsys):
    """The two images belong to one class."""
    workdir, image_folder = copy
    one, other = (image_folder / "train" / "dark" / f"{i}.png" for i in (0, 1))
    one.rename(image_folder / "kept.png")
    other.rename(one)
    (image_folder / "kept.png").rename(other)
    assert "data.digest is " in refused(capsys, run(workdir, image_folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_threefry_partitionable", False), ("jax_enable_x64", True), ("jax_default_prng_impl", "rbg")],
)
def test_ambient_settings(copy, capsys, name, value):
    """Training refuses other settings and names them; programs that only read weights accept them."""
    workdir, image_folder = copy
    before = getattr(jax.config, name)
    _, state = reopen(workdir, image_folder)
    jax.config.update(name, value)
    try:
        line = refused(capsys, run(workdir, image_folder))
        assert f"settings.{name} is {before} there and {value} here" in line
        _, other = reopen(workdir, image_folder)
        jax.tree.map(np.testing.assert_array_equal, state.variables, other.variables)
    finally:
        jax.config.update(name, before)


def test_a_resumed_run_has_the_same_settings(copy):
    workdir, image_folder = copy
    assert run(workdir, image_folder) == 0


def test_processes_that_differ_are_refused_before_the_first_step(runs, copy, tmp_path):
    """Both processes name the field within seconds; otherwise they would train something else or hang."""
    _, image_folder = copy
    (image_folder / "train" / "dark" / "0.png").write_bytes((image_folder / "train" / "dark" / "1.png").read_bytes())
    other = ("--seed", 1, "--epochs", 3, "--recipe", "fast", "--data-dir", image_folder)
    attempts = [({"second": other}, ("seed", "epochs", "recipe", "ingredients.epochs", "data.digest"))]
    attempts += [({"devices": (1, 2), "second": ("--batch-size", 12)}, ("number of devices",))]
    for options, fields in attempts:
        for process in runs.start_two(tmp_path / "pair", "--batch-size", 16, *SMALL, **options):
            code, line = error_of(process)
            assert code == 2
            assert line.startswith("error: all processes must have the same ")
            assert all(field in line for field in fields)
    assert not (tmp_path / "pair" / "config.json").exists()


def test_a_run_on_a_read_only_disk_can_be_read(copy):
    """`evaluate` writes neither decoded images nor compiled programs; only its process sees the read-only mount."""
    workdir, _ = copy
    folder = workdir.parent
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" || exit 77; exec "$@"'
    wrap = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    command = [sys.executable, "-m", "experiments.evaluate", "--workdir", str(workdir)]
    try:
        done = subprocess.run([*wrap, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("this system lets nobody mount a folder")
    accuracy = json.loads((workdir / "result.json").read_text())["test_accuracy"]
    assert (done.returncode, done.stderr) == (0, "")
    assert f"accuracy {accuracy:.2%}" in done.stdout
