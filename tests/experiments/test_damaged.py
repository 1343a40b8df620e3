"""Tests damaged small files of a run, and folders for compiled programs that other users can write to."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from faults.subject import write_images

from experiments import export
from experiments.common import runs, training
from experiments.common.config import TrainConfig
from experiments.common.description import check_data, describe
from experiments.common.recipes import RECIPES
from experiments.common.workdir import finished, read, write_or_compare
from lowcost.data import Dataset, Split
from lowcost.deploy.loading import identity

ROOT = Path(__file__).parents[2]
INGREDIENTS = dataclasses.asdict(RECIPES["paper"])


@pytest.fixture
def workdir(tmp_path):
    """Returns a work directory with a configuration and a result."""
    config = TrainConfig(workdir=tmp_path, epochs=1, kernel_size=3)
    data = {"classes": ["0", "1"], "image_shape": [8, 8, 1], "train": 1437}
    write_or_compare(config, INGREDIENTS, data, {}, {})
    (tmp_path / "result.json").write_text('{"test_accuracy": 0.5}')
    assert read(tmp_path) == (config, RECIPES["paper"])
    assert finished(config, INGREDIENTS) == {"test_accuracy": 0.5}
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", value) for value in ("three", None, 0, 1.5, True, [1])],
        *[("width", "Z"), ("width", ["A"]), ("h", "1"), ("remat", 0), ("batch_size", 0), ("seed", -1), ("seeds", {})],
        *[("data_dir", 3), ("ingredients.learning_rate", "fast"), ("ingredients.optimizer", "sgd")],
        *[
            ("data.classes", 10),
            ("data.image_shape", [8, "8"]),
            ("data.train", "all"),
            ("data", []),
            ("settings", 1),
            ("methods", []),
        ],
    ],
)
def test_a_configuration_of_wrong_types_is_refused(workdir, name, value):
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    *parts, last = name.split(".")
    (content[parts[0]] if parts else content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=str(path)) as error:
        runs.trained(workdir)
    assert name in ("data", "settings", "methods") or f"{name} in {path} must be " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_older_than_some_fields_is_the_same_run(workdir):
    """A field that config.json lacks had the value that is now the default; stencils had 3 points."""
    path, config = workdir / "config.json", TrainConfig(workdir=workdir, epochs=1, kernel_size=3)
    content = json.loads(path.read_text())
    del content["methods"], content["kernel_size"], content["seeds"], content["ingredients"]["flip"]
    for older in (content, content["ingredients"]):
        del older["label_smoothing"]
    path.write_text(json.dumps(content))
    assert finished(config, INGREDIENTS) == {"test_accuracy": 0.5}
    assert read(workdir) == (config, RECIPES["paper"])
    write_or_compare(config, INGREDIENTS, content["data"], {}, {})
    assert json.loads(path.read_text()) == content
    known = identity(workdir)
    write_or_compare(dataclasses.replace(config, data_dir=workdir), INGREDIENTS, content["data"], {}, {})
    assert json.loads(path.read_text()) == content | {"data_dir": str(workdir)}
    assert runs.prepare(dataclasses.replace(config, kernel_size=None)).config.kernel_size == 3
    assert identity(workdir) == known  # so that its checkpoints stay those of this run
    with pytest.raises(ValueError, match=r"ingredients\.label_smoothing is 0\.0 there and 0\.1 here"):
        finished(config, INGREDIENTS | {"label_smoothing": 0.1})
    with pytest.raises(
        ValueError, match=r"seeds is 1 there and 2 here, ingredients\.flip is random there and alternating"
    ):
        finished(dataclasses.replace(config, seeds=2), INGREDIENTS | {"flip": "alternating"})


def test_a_finished_run_with_an_ingredient_of_its_own_is_not_trained_again(tmp_path):
    config = TrainConfig(workdir=tmp_path, epochs=1, kernel_size=3, learning_rate=0.02, label_smoothing=0.1)
    ingredients = INGREDIENTS | {"learning_rate": 0.02, "label_smoothing": 0.1}
    write_or_compare(config, ingredients, {}, {}, {})
    (tmp_path / "result.json").write_text("{}")
    found = []
    assert training.run_all([(config, RECIPES["paper"])], found.append, lambda *_: pytest.fail("trained again")) == 0
    assert found == [config]


def test_a_run_whose_labels_of_points_were_found_is_found_again(tmp_path):
    """Its configuration states the task that its data have, and the flags state none."""
    config = TrainConfig(workdir=tmp_path, epochs=1, kernel_size=3)
    write_or_compare(dataclasses.replace(config, task="pixels"), INGREDIENTS, {}, {}, {})
    (tmp_path / "result.json").write_text("{}")
    assert finished(config, INGREDIENTS) == {}
    with pytest.raises(ValueError, match="task is pixels there and tags here"):
        finished(dataclasses.replace(config, task="tags"), INGREDIENTS)


def test_more_epochs_of_a_run_need_a_new_one(tmp_path):
    """The error states how to start one, but only if nothing else differs."""
    config = TrainConfig(epochs=4, workdir=tmp_path)
    write_or_compare(config, INGREDIENTS, {}, {}, {})
    for changes, more in (({}, True), ({"h": 2.0}, False)):
        with pytest.raises(ValueError, match="epochs is 4 there and 8 here") as error:
            write_or_compare(dataclasses.replace(config, epochs=8, **changes), INGREDIENTS, {}, {}, {})
        assert (f"--init-from {tmp_path}" in str(error.value)) == more


@pytest.mark.parametrize("content", [b"", b"\xff{}", b"[]", b"{" * 100, b"[" * 100_000])
def test_a_damaged_result_is_refused(workdir, content):
    path, config = workdir / "result.json", TrainConfig(workdir=workdir, epochs=1, kernel_size=3)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*; remove it and run the same training again"):
        finished(config, INGREDIENTS)
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{workdir / 'config.json'} .*, or choose another work directory"):
        read(workdir)


def test_a_result_without_a_name_is_refused(workdir):
    result = finished(TrainConfig(workdir=workdir, epochs=1, kernel_size=3), INGREDIENTS)
    with pytest.raises(ValueError, match=f"{workdir / 'result.json'} must hold digest, got none; remove it"):
        result["digest"]


def test_a_finished_run_with_damaged_files(tmp_path, capsys):
    """A damaged result is refused in one line; a damaged line of metrics.jsonl is removed with a warning."""
    image_folder, workdir = write_images(tmp_path / "image_folder"), tmp_path / "run"
    arguments = {"epochs": 2, "batch_size": 8, "steps_per_block": 1, "width": (8, 16), "workdir": workdir}
    config = TrainConfig("folder", data_dir=image_folder, **arguments)
    assert training.run(config) == 0
    result = json.loads((workdir / "result.json").read_text())
    capsys.readouterr()

    metrics = workdir / "metrics.jsonl"
    first, second = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(first.replace(b"e", b"\xe5", 1) + second)
    assert training.run(config) == 0
    assert f"warning: line 1 of {metrics} is damaged; its epoch is left out" in capsys.readouterr().err
    assert metrics.read_bytes() == second

    (workdir / "result.json").write_bytes(b"")
    for code in training.run(config), _status(lambda: export.main(export.ExportConfig(workdir, tmp_path / "net.onnx"))):
        assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(f"error: {workdir / 'result.json'} is damaged (" in line for line in lines)
    (workdir / "result.json").unlink()
    assert training.run(config) == 0
    assert json.loads((workdir / "result.json").read_text())["digest"] == result["digest"]


def _status(main):
    try:
        return main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@pytest.fixture
def open_folder():
    """Returns a folder to which other users cannot write, below parents of the same kind or with the sticky bit."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


_PROGRAM = """
import sys, jax
from pathlib import Path
from experiments.common.compiled import keep_compiled
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
keep_compiled(Path(sys.argv[1]))
print(jax.jit(lambda x: x + 1)(1))
print(jax.config.jax_compilation_cache_dir)
"""


def compile_beside(folder, **environment):
    """Compiles a small program with a cache folder; returns the folder that was used and the warning."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", _PROGRAM, folder],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1], done.stderr


def give_away(path):
    """Gives the path to another user or, without that right, to everybody."""
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        path.chmod(0o777)


@pytest.mark.parametrize("which", ["folder", "parent", "link"])
def test_programs_of_other_users_are_not_run(open_folder, which):
    """JAX alone would load and run entries that another user could have written."""
    theirs, home = open_folder / "theirs" / "compiled", open_folder / "home"
    home.mkdir(mode=0o700)
    assert compile_beside(theirs) == (str(theirs), "")
    [entry] = theirs.glob("*-cache")
    entry.write_bytes(b"forged")
    give_away(theirs.parent if which == "parent" else theirs)
    asked = theirs
    if which == "link":
        asked = open_folder / "link"
        asked.symlink_to(theirs)
    taken, warning = compile_beside(asked, XDG_CACHE_HOME=str(home))
    assert taken == str(home / "lowcost" / "compiled")
    assert warning.count("\n") == 1
    assert warning.startswith(f"warning: compiled programs are not read from {asked}: ")
    assert list(Path(taken).glob("*-cache"))  # compiled anew
    assert (Path(taken).stat().st_mode & 0o777) == 0o700
    assert entry.read_bytes() == b"forged"

    if which == "folder":  # the folder in the home is no safer
        give_away(home)
        assert compile_beside(asked, XDG_CACHE_HOME=str(home))[0] == "None"


def test_entries_that_are_damaged_or_of_others_are_replaced(open_folder):
    """JAX alone would warn of damaged entries at every start, and run those of other users."""
    folder = open_folder / "compiled"
    compile_beside(folder)
    (entry,) = folder.glob("*-cache")
    whole = entry.read_bytes()
    for damaged in b"", whole[:-1], whole[: len(whole) // 2], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]:
        entry.write_bytes(damaged)
        assert compile_beside(folder) == (str(folder), "")
        assert len(entry.read_bytes()) > 100
    if os.getuid() == 0:
        os.chown(entry, 12345, 12345)
        compile_beside(folder)
        assert entry.stat().st_uid == 0


def test_programs_without_a_device(workdir):
    """Programs that only read a run end with one line too."""
    for name in ("evaluate", "spectra"):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", "--workdir", workdir],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cuda"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("error: JAX must find devices, got none with JAX_PLATFORMS=cuda (")


def test_floats_are_no_data_of_a_run_on_bytes(tmp_path):
    """config.json leaves the dtype uint8 out; ranges of floats from 0 to 255 would be 255 times too large."""
    bytes_ = Split(np.zeros((2, 8, 8, 1), np.uint8), np.int32([0, 1]))
    floats = Split(bytes_.images.astype(np.float32), bytes_.labels)
    of_run, other = (Dataset("arrays", split, split, ("a", "b"), ()) for split in (bytes_, floats))
    check_data(tmp_path, of_run, describe(of_run))
    with pytest.raises(ValueError, match="was trained on dtype uint8, the data has float32; name its own data"):
        check_data(tmp_path, other, describe(of_run))
