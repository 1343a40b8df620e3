"""Goes from arrays to predictions as a user does: trains, evaluates, exports and predicts by the programs."""

import csv
import dataclasses
import itertools
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lowcost
from experiments import evaluate, export, predict
from experiments.common import evaluation_plots, training
from experiments.common.config import TrainConfig
from experiments.common.inputs import Inputs, examples, find
from experiments.evaluate import EvaluateConfig
from experiments.export import ExportConfig
from experiments.predict import PredictConfig
from lowcost.data.arrays import ROLES

SMALL = {"width": (4, 8), "steps_per_block": 1, "batch_size": 8, "epochs": 6, "recipe": "fast", "kernel_size": 3}
UNITS = np.array([[1000.0, -3.0], [20.0, 1e-3]])
"""Mean and deviation of each channel; no network could be trained on such values without standardisation."""


def waves(rng, labels, grid):
    """Returns noisy waves [N, *grid, 2], which are fast along the first axis for label 1."""
    points = np.arange(grid[0]).reshape(-1, *[1] * len(grid))
    phases = rng.uniform(0, 2 * np.pi, (len(labels), *[1] * len(grid), 2))
    speeds = np.where(labels == 1, 2.0, 0.6).reshape(-1, *[1] * (len(grid) + 1))
    return np.sin(speeds * points + phases) + 0.2 * rng.normal(size=(len(labels), *grid, 2))


def dataset(path, grid, convert, **more):
    """Writes an .npz file of 64 training and 24 test examples of two classes."""
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(["slow", "fast"]), **more}
    for part, number in (("train", 64), ("test", 24)):
        labels = np.arange(number) % 2
        arrays |= {f"{part}_images": convert(waves(rng, labels, grid)), f"{part}_labels": labels}
    np.savez(path, **arrays)
    return path


def trained(path, workdir, **options):
    assert training.run(TrainConfig("arrays", data_dir=path, workdir=workdir, **{**SMALL, **options})) == 0
    return workdir


def table(path):
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def predicted(tmp_path, *files, **source):
    """Returns file → (class, probability), by `predict`."""
    assert predict.main(PredictConfig(files, csv=tmp_path / "predicted.csv", **source)) == 0
    return {row["file"]: (row["class"], float(row["probability"])) for row in table(tmp_path / "predicted.csv")}


def evaluated(workdir, tmp_path, **options):
    """Returns (class, probability) of each test example, by `evaluate`."""
    evaluate.main(EvaluateConfig(workdir, csv=tmp_path / "evaluated.csv", **options))
    return [(row["predicted class"], float(row["probability"])) for row in table(tmp_path / "evaluated.csv")]


def exported(workdir, tmp_path):
    """Returns the arguments of `predict` for the run and for its files of all formats."""
    sources = [{"workdir": workdir}]
    for form in ("onnx", "stablehlo", "safetensors"):
        export.main(ExportConfig(workdir, tmp_path / f"net.{form}", form))
        sources.append({"model": tmp_path / f"net.{form}"})
    return sources


def assert_same(answers, expected):
    """Asserts the same classes and the same probabilities up to 1e-4."""
    assert len(answers) == len(expected)
    for (name, p), (other, q) in zip(answers, expected, strict=True):
        assert name == other or abs(p - 0.5) < 1e-4
        assert p == pytest.approx(q, abs=1e-4)


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """Returns a file of float signals in odd units, and a finished run on it."""
    folder = tmp_path_factory.mktemp("signals")
    path = dataset(folder / "signals.npz", (25,), lambda x: UNITS[0] + UNITS[1] * x)
    return path, trained(path, folder / "run", grid_axes=1)


def test_signals_from_an_array_to_a_prediction(signals, tmp_path, capsys):
    """All programs agree on float signals of 25 points, in the units of the user."""
    path, workdir = signals
    content, result = (json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "result"))
    assert content["data"]["dtype"] == "float32"
    means, deviations = content["data"]["moments"]
    with np.load(path) as file:
        images, labels = file["test_images"], file["test_labels"]
        np.testing.assert_allclose(means, file["train_images"].mean((0, 1)), rtol=1e-6)
        np.testing.assert_allclose(deviations, file["train_images"].std((0, 1)), rtol=1e-3)
    assert result["test_accuracy"] >= 0.9
    want = evaluated(workdir, tmp_path)
    assert np.mean([name == ("slow", "fast")[y] for (name, _), y in zip(want, labels, strict=True)]) >= 0.9
    names = {"confusion.png", "reliability.png", "mistakes.png"}
    assert {file.name for file in (workdir / "evaluation").iterdir()} == names
    several, one, folder = tmp_path / "several.npy", tmp_path / "one.npy", tmp_path / "folder"
    folder.mkdir()
    np.save(several, images)
    np.save(one, images[3])
    np.savez(folder / "named.npz", others=np.zeros(3), test_images=images.astype(np.float32)[:2])
    for source in exported(workdir, tmp_path):
        answers = predicted(tmp_path, several, one, folder, **source)
        rows = [f"{several}[{i}]" for i in range(24)]
        assert [*answers] == [*rows, str(one), *(f"{folder / 'named.npz'}[{i}]" for i in range(2))]
        assert_same([*answers.values()], [*want, want[3], *want[:2]])
    out = capsys.readouterr().out
    assert f"{several}[3]  {want[3][0]}  {want[3][1]:.1%}  " in out
    loaded = lowcost.load(tmp_path / "net.safetensors")
    assert (loaded.image_shape, loaded.dtype, loaded.moments) == ((25, 2), "float32", (tuple(means), tuple(deviations)))


def test_files_that_do_not_fit_are_refused(signals, tmp_path, capsys):
    """One line per file states what was expected and what came; the other files are still classified."""
    _, workdir = signals
    good = np.zeros((25, 2)) + UNITS[0]
    files = {
        "narrow": (good[:, :1], "hold float32 [25, 2] or several of these, got float64 [25, 1]; convert it"),
        "short": (good[:24], "got float64 [24, 2]"),
        "deep": (good[None, None], "got float64 [1, 1, 25, 2]"),
        "none": (np.zeros((0, 25, 2)), "got float64 [0, 25, 2]"),
        "bytes": (good.astype(np.uint8), "hold float32 [25, 2] or several of these, got uint8 [25, 2]"),
        "complex": (good.astype(complex), "got complex128 [25, 2]"),
        "words": (np.full((25, 2), "a"), "got <U1 [25, 2]"),
        "scalar": (np.float32(3), "got float32 []"),
        "nan": (np.where(good < 0, np.nan, good), "be finite in float32, got NaN, an infinity or a larger number"),
        "huge": (good * 1e300, "be finite in float32"),
        "objects": (np.full((25, 2), None), "be a readable file of numbers, got ValueError: "),
    }
    np.save(tmp_path / "whole.npy", good)
    for name, (array, _) in files.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:200])
    (tmp_path / "cut.npz").write_bytes(signals[0].read_bytes()[:2000])
    np.savez(tmp_path / "empty.npz")
    Image.new("RGB", (25, 25)).save(tmp_path / "image.png")
    assert predict.main(PredictConfig((tmp_path, tmp_path / "image.png"), workdir=workdir)) == 2
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == [str(tmp_path / "whole.npy")]
    errors = dict(line.removeprefix("error: ").split(" must ", 1) for line in err.splitlines() if "error" in line)
    expected = {f"{name}.npy": message for name, (_, message) in files.items()}
    expected |= dict.fromkeys(("text.npy", "cut.npy", "cut.npz", "empty.npz"), "be a readable file of numbers, got ")
    expected["image.png"] = "be a .npy or .npz file of float32 [25, 2], got another file;"
    assert errors.keys() == {str(tmp_path / name) for name in expected}
    for name, message in expected.items():
        assert message in errors[str(tmp_path / name)]
    assert "unpickle" not in err + out
    assert "pickle.load" not in err


def test_moments_are_those_of_the_run(signals, tmp_path, capsys):
    """A resumed run must have the same moments; `evaluate` keeps them if the file holds other training signals."""
    path, workdir = signals
    with np.load(path) as file:
        arrays = dict(file)
    other = tmp_path / "other.npz"
    np.savez(other, **arrays | {"train_images": 2 * arrays["train_images"]})
    assert evaluated(workdir, tmp_path, data_dir=other) == evaluated(workdir, tmp_path)
    np.savez(
        tmp_path / "integers.npz", **arrays | {n: arrays[n].astype(np.int16) for n in ("train_images", "test_images")}
    )
    with pytest.raises(ValueError, match=r"was trained on dtype float32, the data has int16; name its own data"):
        evaluated(workdir, tmp_path, data_dir=tmp_path / "integers.npz")
    copy = shutil.copytree(workdir, tmp_path / "run")
    capsys.readouterr()
    for data_dir, name in ((other, "data.moments"), (tmp_path / "integers.npz", "data.dtype")):
        assert training.run(TrainConfig("arrays", data_dir=data_dir, workdir=copy, grid_axes=1, **SMALL)) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert f"{name} is " in line
    assert training.run(TrainConfig("arrays", data_dir=path, workdir=copy, grid_axes=1, **SMALL)) == 0
    assert "nothing was left to do" in capsys.readouterr().out


def test_another_data_set_has_moments_of_its_own(signals, tmp_path):
    """A fine-tuned network standardises by the moments of the new signals."""
    path, workdir = signals
    with np.load(path) as file:
        arrays = {name: 7 * array - 5 if name.endswith("images") else array for name, array in file.items()}
    np.savez(tmp_path / "other.npz", **arrays)
    options = SMALL | {"epochs": 1}
    config = TrainConfig("arrays", data_dir=tmp_path / "other.npz", workdir=tmp_path / "run", grid_axes=1, **options)
    assert training.run(dataclasses.replace(config, init_from=str(workdir), loaded_rate=0.0)) == 0
    before, after = lowcost.load(workdir), lowcost.load(tmp_path / "run")
    np.testing.assert_allclose(after.moments[0], 7 * np.array(before.moments[0]) - 5, rtol=1e-4)
    stencils = [np.asarray(x.variables["params"]["opening"]["stencil"]) for x in (before, after)]
    np.testing.assert_allclose(*stencils, rtol=1e-5)  # the moving average rounds


def test_volumes_from_an_array_to_a_prediction(tmp_path):
    """All programs agree on volumes of uint16 on a grid with odd and unequal axes."""
    grid = (9, 7, 6)
    path = dataset(tmp_path / "volumes.npz", grid, lambda x: (20000 + 5000 * x).astype(np.uint16))
    workdir = trained(path, tmp_path / "run", grid_axes=3)
    want = evaluated(workdir, tmp_path)
    assert json.loads((workdir / "config.json").read_text())["data"]["dtype"] == "uint16"
    with np.load(path) as file:
        np.save(tmp_path / "several.npy", file["test_images"])
        np.save(tmp_path / "one.npy", file["test_images"][5])
    for source in exported(workdir, tmp_path):
        answers = predicted(tmp_path, tmp_path / "several.npy", tmp_path / "one.npy", path, **source)
        assert_same([*answers.values()], [*want, want[5], *want])
    loaded = lowcost.load(workdir)
    assert (loaded.image_shape, loaded.dtype) == ((*grid, 2), "uint16")
    with np.load(path) as file:
        unit = file["train_images"] / 65535
    np.testing.assert_allclose(loaded.moments, [unit.mean((0, 1, 2, 3)), unit.std((0, 1, 2, 3))], rtol=1e-4)
    assert json.loads(loaded.preprocessing)["range"] == "divide by 65535, to [0, 1]; the network itself standardises"


def test_narrow_integers_train_like_floats(tmp_path):
    """int16 values that fill 3 % of the range give the accuracy of the same values in float32."""
    results = []
    for dtype in (np.int16, np.float32):
        path = dataset(
            tmp_path / f"{dtype.__name__}.npz", (25,), lambda x, t=dtype: (1000 * x).astype(np.int16).astype(t)
        )
        workdir = trained(path, tmp_path / dtype.__name__, grid_axes=1, recipe="fast")
        results.append(json.loads((workdir / "result.json").read_text()))
    integers, floats = results
    assert floats["test_accuracy"] >= 0.9
    assert integers["test_accuracy"] == pytest.approx(floats["test_accuracy"], abs=0.05)


def test_masked_signals(tmp_path, capsys):
    """Shorter signals are padded and masked as in training; longer ones, and ONNX, are refused in one line."""
    lengths = {f"{part}_lengths": 12 + np.arange(n) % 14 for part, n in (("train", 64), ("test", 24))}
    path = dataset(tmp_path / "signals.npz", (25,), lambda x: UNITS[0] + UNITS[1] * x, **lengths)
    workdir = trained(path, tmp_path / "run", grid_axes=1)
    want = evaluated(workdir, tmp_path)
    assert json.loads((workdir / "config.json").read_text())["data"]["masked"] is True
    with np.load(path) as file:
        images = file["test_images"]
    files = [tmp_path / f"{i}.npy" for i in range(24)]
    for image, n, file in zip(images, lengths["test_lengths"], files, strict=True):
        np.save(file, image[:n])
    export.main(ExportConfig(workdir, tmp_path / "net.safetensors", "safetensors"))
    for source in ({"workdir": workdir}, {"model": tmp_path / "net.safetensors"}):
        assert_same([*predicted(tmp_path, *files, **source).values()], want)
        assert_same([*predicted(tmp_path, path, **source).values()], want)
    named, takes = tmp_path / "named.npz", Inputs((25, 3), "float32", masked=True)
    rows = [row for _, row in examples(path, takes)]
    for part, further in (("test", ("train", "val")), ("val", ("train",)), ("train", ())):
        for images_form, lengths_form in itertools.product(ROLES["images"], ROLES["lengths"]):
            arrays = {form.format(p): np.arange(3) for p in (part, *further) for form in ROLES["labels"]}
            arrays |= {images_form.format(p): images[:3] for p in further}
            arrays |= {images_form.format(part): images, lengths_form.format(part): lengths["test_lengths"]}
            np.savez(named, **arrays, wavelengths=np.arange(25))
            np.testing.assert_array_equal([row for _, row in examples(named, takes)], rows)
    folder = tmp_path / "folder"  # as training reads it
    folder.mkdir()
    beside = {"test_labels": np.arange(24), "lengths_test": lengths["test_lengths"], "classes": np.array(["a", "b"])}
    for name, array in {"test_images": images, **beside}.items():
        np.save(folder / f"{name}.npy", array)
    assert [*find([folder], takes)] == [folder / "test_images.npy"]
    assert "ignored 3 entries: 3 labels or lengths" in capsys.readouterr().err
    np.testing.assert_array_equal([row for _, row in examples(folder / "test_images.npy", takes)], rows)
    for file in (path, folder / "test_images.npy"):
        with pytest.raises(ValueError, match=r"without padding, got lengths from 12; cut the signals to one length"):
            [*examples(file, Inputs((25, 2), "float32"))]
    for name in ("train_lengths", "lengths_val", "lengths"):
        np.savez(named, train_labels=np.arange(24), test_images=images, **{name: lengths["test_lengths"]})
        assert predict.main(PredictConfig((named,), workdir=workdir)) == 2
        assert f"got ValueError: {name}, which are lengths of no images" in capsys.readouterr().err
    np.save(tmp_path / "long.npy", np.zeros((26, 2)))
    assert predict.main(PredictConfig((tmp_path / "long.npy",), workdir=workdir)) == 2
    assert "must hold float32 [up to 25, 2] or several of these, got float64 [26, 2]" in capsys.readouterr().err
    for form in ("onnx", "stablehlo"):
        with pytest.raises(ValueError, match="mask") as error:
            export.main(ExportConfig(workdir, tmp_path / "net", form))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("images", "lengths", "message"),
    [
        ("images.npy", ["lengths.npy"], "lengths, which are lengths of no images"),
        ("signals.npy", ["signals_lengths.npy"], "signals_lengths, which are lengths of no images"),
        ("signals.NPY", ["lengths_signals.npy"], "lengths_signals, which are lengths of no images"),
        ("test_images.npy", ["train_lengths.npy"], "train_lengths, which are lengths of no images"),
        ("lengths.npy", [], "lengths, which are lengths of no images"),
        ("x_test.npy", ["lengths_test.npy", "test_lengths.npy"], "both test_lengths and lengths_test, of which one"),
        ("test_images.NPY", ["test_lengths.npy"], None),
        ("wavelengths.npy", [], None),
    ],
)
def test_lengths_beside_arrays(tmp_path, images, lengths, message):
    """Padding is never classified: lengths are used, or refused where it is not clear whose they are."""
    takes, numbers = Inputs((4, 2), "float32", masked=True), np.ones((2, 4, 1), np.float32)
    for name, array in {images: numbers, **dict.fromkeys(lengths, np.array([2, 4]))}.items():
        with (tmp_path / name).open("wb") as file:
            np.save(file, array)
    if message is not None:
        with pytest.raises(
            ValueError, match=rf"{images} must be a readable file of numbers, got ValueError: {message}"
        ):
            [*examples(tmp_path / images, takes)]
    else:
        (_, row), _ = examples(tmp_path / images, takes)
        np.testing.assert_array_equal(row[:, 1], [1, 1, 0, 0] if lengths else 1)


@pytest.mark.parametrize("content", ["archive", "floats", "zero"])
def test_damaged_lengths_beside_an_array_are_named(tmp_path, content):
    np.save(tmp_path / "test_images.npy", np.ones((2, 4, 1), np.float32))
    with (tmp_path / "test_lengths.npy").open("wb") as file:
        if content == "archive":
            np.savez(file, lengths=np.array([2, 4]))
        else:
            np.save(file, np.array([2.0, 4.0] if content == "floats" else [0, 4]))
    expected = "lengths.npy must be a readable" if content == "archive" else "the lengths of .* must be integers from 1"
    with pytest.raises(ValueError, match=expected):
        [*examples(tmp_path / "test_images.npy", Inputs((4, 2), "float32", masked=True))]


def test_archives_and_arrays_under_the_name_of_the_other(tmp_path):
    """Members of an archive that are no arrays are skipped, whatever their names; a wrong suffix is an error."""
    images, takes = np.ones((2, 4, 1), np.float32), Inputs((4, 1), "float32")
    archive = tmp_path / "a.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("README.txt", "text")
        file.writestr("test_images.npy", "text")
        with file.open("scans", "w") as stream:
            np.save(stream, images)
    assert [name for name, _ in examples(archive, takes)] == [f"{archive}[0]", f"{archive}[1]"]
    np.save(tmp_path / "b.npy", images)
    for source, target, message in (("a.npz", "c.npy", "several arrays"), ("b.npy", "d.npz", "one array")):
        (tmp_path / target).write_bytes((tmp_path / source).read_bytes())
        with pytest.raises(
            ValueError, match=rf"{target} must be a readable file of numbers, got ValueError: {message}, which need"
        ):
            [*examples(tmp_path / target, takes)]


def test_other_data_than_in_training(tmp_path):
    """`evaluate` needs neither as many training examples as training did, nor validation examples."""
    path = dataset(tmp_path / "signals.npz", (25,), lambda x: x)
    options = {"validation_share": 0.3, "keep_best": True, "train_images": 60}
    workdir = trained(path, tmp_path / "run", grid_axes=1, **options)
    with np.load(path) as file:
        few = {name: array[:5] if name.startswith("train") else array for name, array in file.items()}
    evaluate.main(EvaluateConfig(workdir, csv=tmp_path / "all.csv"))
    for validation in ({}, {"val_images": few["train_images"], "val_labels": few["train_labels"]}):
        np.savez(tmp_path / "few.npz", **few, **validation)
        evaluate.main(EvaluateConfig(workdir, data_dir=tmp_path / "few.npz", csv=tmp_path / "few.csv"))
        assert table(tmp_path / "few.csv") == table(tmp_path / "all.csv")


def test_data_of_another_task_than_in_training_are_refused(tmp_path):
    """Weights of a classifier also fit a network that labels pixels."""
    path = dataset(tmp_path / "images.npz", (8, 8), lambda x: x)
    workdir = trained(path, tmp_path / "run", grid_axes=2)
    with np.load(path) as file:
        labels = {name: np.zeros(file[name].shape[:3], int) for name in ("train_images", "test_images")}
        pixels = {
            name.replace("images", "labels"): np.eye(8, dtype=int)[None] + array for name, array in labels.items()
        }
        np.savez(tmp_path / "pixels.npz", **{**file, **pixels})
    with pytest.raises(ValueError, match="was trained on the task classes, the data has pixels; name its own data"):
        evaluate.main(EvaluateConfig(workdir, data_dir=tmp_path / "pixels.npz"))


def test_resampled_signals(tmp_path):
    """Integer signals of any length are resampled exactly as in training, also for ONNX."""
    lengths = {f"{part}_lengths": 12 + np.arange(n) % 14 for part, n in (("train", 64), ("test", 24))}
    path = dataset(tmp_path / "signals.npz", (25,), lambda x: (1000 * x).astype(np.int16), **lengths)
    workdir = trained(path, tmp_path / "run", grid_axes=1, length=18)
    want = evaluated(workdir, tmp_path)
    with np.load(path) as file:
        images = file["test_images"]
    files = [tmp_path / f"{i}.npy" for i in range(24)]
    for image, n, file in zip(images, lengths["test_lengths"], files, strict=True):
        np.save(file, image[:n])
    for source in exported(workdir, tmp_path):
        assert_same([*predicted(tmp_path, *files, path, **source).values()], [*want, *want])


@pytest.mark.parametrize(
    ("shape", "takes", "count"),
    [
        ((5, 4, 3), Inputs((5, 4, 3)), None),
        ((2, 5, 4, 3), Inputs((5, 4, 3)), 2),
        ((5, 4), Inputs((5, 4, 1)), None),
        ((2, 5, 4), Inputs((5, 4, 1)), 2),
        ((1, 5, 4), Inputs((5, 4, 1)), 1),
        ((2, 5, 4, 1), Inputs((5, 4, 1)), 2),
        ((7,), Inputs((7, 1)), None),
        ((7, 1), Inputs((7, 1)), None),
        ((7, 7), Inputs((7, 1)), 7),
        ((3,), Inputs((7, 2), masked=True), None),
        ((3, 1), Inputs((7, 2), masked=True), None),
        ((9, 3), Inputs((7, 2), masked=True), 9),
        ((1,), Inputs((7, 2), masked=True), None),
        ((9, 30), Inputs((7, 1), length=7), 9),
        ((30, 2), Inputs((7, 2), length=7), None),
    ],
)
def test_one_example_or_several(shape, takes, count, tmp_path):
    """An axis of one channel may be left out; signals may have other lengths where the network takes them."""
    takes = takes._replace(dtype="float32" if takes.varies else "uint8")
    np.save(tmp_path / "a.npy", np.ones(shape, takes.dtype))
    names, images = zip(*examples(tmp_path / "a.npy", takes), strict=True)
    path = str(tmp_path / "a.npy")
    assert [*names] == ([path] if count is None else [f"{path}[{i}]" for i in range(count)])
    assert {(image.shape, image.dtype) for image in images} == {(takes.image_shape, np.dtype(np.float32))}


def test_a_signal_that_is_too_long_is_not_several_points(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((9, 1), np.float32))
    with pytest.raises(
        ValueError, match=r"a\.npy must hold float32 \[up to 7, 1\] or several of these, got .* \[9, 1\]"
    ):
        [*examples(tmp_path / "a.npy", Inputs((7, 2), "float32", masked=True))]


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int8", "<u2"])
def test_integers_are_scaled_by_their_range(dtype, tmp_path):
    info = np.iinfo(dtype)
    np.save(tmp_path / "a.npy", np.linspace(info.min, info.max, 7).astype(dtype))
    [(_, got)] = examples(tmp_path / "a.npy", Inputs((7, 1), np.dtype(dtype).name))
    np.testing.assert_allclose(got[:, 0], np.linspace(0, 1, 7), atol=1 / 100)
    assert (got.min(), got.max()) == (0, 1)


def test_arrays_for_a_network_of_image_files(tmp_path):
    """An array gives the same numbers as an image file with the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels[1]).save(tmp_path / "a.png")
    takes = Inputs((6, 5, 3))
    [(_, image)] = examples(tmp_path / "a.png", takes)
    np.testing.assert_array_equal(image, [*examples(tmp_path / "a.npy", takes)][1][1])


@pytest.mark.parametrize("shape", [(30, 1), (30, 4), (6, 7, 1), (6, 7, 3), (6, 7, 5), (5, 6, 7, 1), (5, 6, 7, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_mistakes_are_drawn_without_a_warning(shape, dtype, tmp_path):
    """Draws signals, images and volumes of any number of channels and any range, even constant ones."""
    images = np.random.default_rng(0).normal(0, 1000, (3, *shape)).astype(dtype)
    images[2] = 7
    path = Path(tmp_path / "mistakes.png")
    evaluation_plots.draw_mistakes(images, [("file", "true: a", "predicted: b")] * 3, 3, path)
    assert path.read_bytes().startswith(b"\x89PNG")
