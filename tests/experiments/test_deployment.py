"""Runs `export` and `predict` as a user does, and the program that compares all forms of a network."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from faults.subject import write_images
from PIL import Image

import lowcost
from experiments import deploy, evaluate, export, predict
from experiments.common import classifiers, runs, training
from experiments.common.config import TrainConfig
from experiments.common.inputs import Inputs, read
from experiments.evaluate import EvaluateConfig
from experiments.export import ExportConfig
from experiments.predict import PredictConfig
from lowcost.data.dataset import Dataset, Split
from lowcost.data.decoding import read_image
from lowcost.deploy import loading
from lowcost.deploy.loading import temperatures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("image_folder"))


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    """Returns a finished run that distinguishes dark from light images."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    few = {"width": (8, 16), "epochs": 2, "batch_size": 8, "steps_per_block": 1}
    assert training.run(TrainConfig("folder", data_dir=image_folder, recipe="fast", workdir=workdir, **few)) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "net.onnx"
    export.main(ExportConfig(run, file))
    return file


def test_calibration_images_are_of_both_classes_where_these_take_turns(monkeypatch):
    """Every second image is bright, and half of the images are taken."""
    images, labels = np.zeros((1000, 8, 8, 1), np.uint8), np.arange(1000, dtype=np.int32) % 2
    images[1::2] = 255
    split = Split(images, labels)
    monkeypatch.setattr(export.deploy, "quantize", lambda folded, images: images)
    taken = export.quantized(None, Dataset("turns", split, split, ("dark", "bright"), ()))
    assert len(taken) == 500
    assert 0.4 < np.mean(taken) < 0.6


@pytest.mark.parametrize("options", [{"tolerance": 0.1}, {"bits": 8, "activations": 8}], ids=str)
def test_a_file_is_what_its_flags_ask_for(run, options, tmp_path, capsys):
    export.main(ExportConfig(run, tmp_path / "net.onnx", **options))
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert ("Reciprocal" in kinds) == ("tolerance" not in options)
    assert ("QuantizeLinear" in kinds) == ("activations" in options)
    assert ("loses at most" in capsys.readouterr().out) == ("tolerance" in options)


def test_predict_from_run_and_files_agree(run, exported, image_folder, capsys, tmp_path, monkeypatch):
    """The run and all kinds of file give the same classes and probabilities by both runtimes, also as a table."""
    stablehlo, saved = tmp_path / "net.stablehlo", tmp_path / "net.safetensors"
    export.main(ExportConfig(run, stablehlo, "stablehlo"))
    export.main(ExportConfig(run, saved, "safetensors"))
    monkeypatch.setattr(loading, "RELEASED", tmp_path)
    capsys.readouterr()
    tables = []
    for i, source in enumerate(
        (
            {"workdir": run},
            {"workdir": run, "runtime": "onnx"},
            {"model": exported},
            {"model": stablehlo},
            {"model": saved},
            {"model": saved, "runtime": "onnx"},
            {"model": Path("net")},
        )
    ):
        assert predict.main(PredictConfig((image_folder / "test",), csv=tmp_path / f"{i}.csv", **source)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 18
        with (tmp_path / f"{i}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert lines[0].split("  ")[:2] == [rows[0]["file"], rows[0]["class"]]
        assert all(float(row["milliseconds"]) > 0 for row in rows)
        tables.append([(row["file"], row["class"], float(row["probability"])) for row in rows])
    assert {label for _, label, _ in tables[0]} <= {"dark", "light"}
    for table in tables[1:]:
        for (file, label, p), (other_file, other_label, q) in zip(tables[0], table, strict=True):
            assert (file, label) == (other_file, other_label)
            assert p == pytest.approx(q, abs=1e-4)


@pytest.fixture
def calibrated(run, tmp_path):
    """Returns a copy of the run with a temperature in its result."""
    workdir = tmp_path / "calibrated"
    subprocess.run(["cp", "-r", run, workdir], check=True)
    change_result(workdir, temperatures=[4.0])
    return workdir


def change_result(workdir, **fields):
    path = workdir / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def read_table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_evaluate_and_predict_agree(run, calibrated, image_folder, capsys, tmp_path):
    """Both give the same class and probability for each test image, with the run's temperature; plots are drawn."""
    result = json.loads((run / "result.json").read_text())
    sure = []
    for workdir, out in (run, None), (calibrated, tmp_path / "out"):
        evaluate.main(EvaluateConfig(workdir, csv=tmp_path / "all.csv", out=out))
        said = capsys.readouterr().out
        assert f"on all 18 test images of folder:\nseed 0: accuracy {result['test_accuracy']:.2%}, loss " in said
        assert ("\nwith temperature 4: expected calibration error " in said) == (workdir == calibrated)
        predict.main(PredictConfig((image_folder / "test",), workdir=workdir, csv=tmp_path / "each.csv", top=5))
        every, each = read_table(tmp_path / "all.csv"), read_table(tmp_path / "each.csv")
        assert list(each[0]) == ["file", "class", "probability", "milliseconds", "class2", "probability2"]
        for row, other in zip(every, each, strict=True):
            assert row["true class"] == Path(other["file"]).parent.name
            assert row["predicted class"] == other["class"] != other["class2"]
            assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)
            assert float(other["probability"]) + float(other["probability2"]) == pytest.approx(1, abs=2e-6)
        first = capsys.readouterr().out.splitlines()[0].split("  ")
        assert first[1:4:2] == [each[0]["class"], each[0]["class2"]]
        sure.append(np.array([float(row["probability"]) for row in each]))
    for folder in (run / "evaluation", tmp_path / "out"):
        assert {path.name for path in folder.iterdir()} == {"confusion.png", "reliability.png", "mistakes.png"}
    p = sure[1]
    np.testing.assert_allclose(sure[0], p**4 / (p**4 + (1 - p) ** 4), atol=1e-4)


def test_evaluate_refuses_in_one_line(calibrated, capsys, monkeypatch, tmp_path):
    step = json.loads((calibrated / "result.json").read_text())["steps"]
    for bad in ([], [1, 2], [0.0], ["1"], 1.0, [float("nan")]):
        change_result(calibrated, temperatures=bad)
        with pytest.raises(ValueError, match=r"temperatures in .* must be a list of 1 numbers above 0, got .*; put"):
            temperatures(calibrated, 1, step)
    change_result(calibrated, temperatures=[2.0])
    assert temperatures(calibrated, 1, step) == [2.0]
    assert temperatures(calibrated, 1, step - 1) is None  # an older checkpoint has other weights
    change_result(calibrated, temperatures=None)
    with pytest.raises(
        ValueError, match="--part must be test or train for a run without validation images, got validation"
    ):
        evaluate.main(EvaluateConfig(calibrated, part="validation"))
    with pytest.raises(FileNotFoundError, match="choose another --csv"):
        evaluate.main(EvaluateConfig(calibrated, csv=tmp_path / "none" / "table.csv"))
    capsys.readouterr()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    evaluate.main(EvaluateConfig(calibrated, part="train"))  # evaluates without plots
    out = capsys.readouterr().out
    assert "on all 48 train images of folder:" in out
    assert out.endswith(f"\nno plots: {calibrated} cannot be written to; choose another folder with --out\n")


def test_predict_reads_task_and_temperature_of_a_file(exported, image_folder, capsys, tmp_path):
    """Classes get a softmax of logits / temperature, tags a sigmoid, and values their units."""
    image, model, file = image_folder / "test" / "dark" / "0.png", onnx.load(exported), tmp_path / "net.onnx"
    about = {"classes": '["one", "two"]', "image_shape": "[16, 16, 3]"}
    logits = None
    values = {"task": "values", "scale": "[[5, -1], [10, 2]]"}
    distant = {"task": "values", "scale": "[[2459000, -1e9], [0.01, 2]]"}  # with deviations much smaller than the means
    for more in ({"task": "values"}, values, distant, {"task": "tags"}, {"temperature": "3.5"}):
        onnx.helper.set_model_props(model, about | more)
        onnx.save(model, file)
        assert predict.main(PredictConfig((image,), model=file, csv=tmp_path / "table.csv", top=2)) == 0
        (row,), words = read_table(tmp_path / "table.csv"), capsys.readouterr().out.strip().split("  ")
        if logits is None:
            assert list(row) == ["file", "milliseconds", "one", "two"]
            logits = np.array([float(row["one"]), float(row["two"])])
            assert words[1:-1] == ["one", f"{logits[0]:.4g}", "two", f"{logits[1]:.4g}"]
        elif more == distant:
            found = np.array([float(row["one"]) - 2459000, float(row["two"]) + 1e9])
            np.testing.assert_allclose(found, logits * (0.01, 2), rtol=1e-4, atol=1e-7)
            shown = np.array([float(words[2]) - 2459000, float(words[4]) + 1e9])
            np.testing.assert_allclose(shown, logits * (0.01, 2), atol=2e-3)
        elif "scale" in more:
            np.testing.assert_allclose([float(row["one"]), float(row["two"])], (5, -1) + logits * (10, 2), rtol=1e-4)
        elif "task" in more:
            p = 1 / (1 + np.exp(-logits))
            np.testing.assert_allclose([float(row["one"]), float(row["two"])], p, rtol=1e-4)
            found = [word for name, x in zip(("one", "two"), p, strict=True) if x >= 0.5 for word in (name, f"{x:.1%}")]
            assert words[1:-1] == (found or ["no tag"])
        else:
            p = 1 / (1 + np.exp(-abs(logits[0] - logits[1]) / 3.5))
            assert float(row["probability"]) == pytest.approx(p, abs=1e-4)
            assert row["class"] == ("one", "two")[int(logits.argmax())]
    for more in (
        {"task": "captions"},
        {"temperature": "0"},
        {"temperature": "nan"},
        {"temperature": "warm"},
        {"scale": "[1]"},
    ):
        onnx.helper.set_model_props(model, about | more)
        onnx.save(model, file)
        with pytest.raises(ValueError, match=r"net\.onnx cannot be used as ONNX file .*; export it again") as error:
            classifiers.load(model=file)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--top must be at least 1, got 0"):
        predict.main(PredictConfig((image,), model=exported, top=0))


def test_the_opset_is_that_of_the_flag_and_stands_in_the_metadata(run, exported, tmp_path):
    export.main(ExportConfig(run, tmp_path / "net.onnx", opset=17))
    for file, opset in ((exported, 21), (tmp_path / "net.onnx", 17)):
        model = onnx.load(file)
        assert [x.version for x in model.opset_import] == [opset]
        assert {x.key: x.value for x in model.metadata_props}["opset"] == str(opset)


def test_a_file_for_loading_holds_the_network_of_the_run(run, exported, tmp_path, capsys):
    """The logits are equal bit for bit, and the file has the metadata of the other formats and a card."""
    file, again = tmp_path / "net.safetensors", tmp_path / "again.safetensors"
    export.main(ExportConfig(run, file, "safetensors"))
    export.main(ExportConfig(run, again, "safetensors"))
    assert capsys.readouterr().out.startswith(f"{file}: {file.stat().st_size:,} bytes\n")
    assert file.read_bytes() == again.read_bytes()
    ready, state = runs.reopen(run, None)
    loaded, of_run = lowcost.load(file), lowcost.load(run)
    images = ready.dataset.test.images[:4] / np.float32(255)
    want = jax.jit(ready.net.apply)(jax.device_get(state.variables), images)  # on one device, as those below
    for one in (loaded, of_run):
        np.testing.assert_array_equal(jax.jit(one.net.apply)(one.variables, images), want)
    assert loaded.card == of_run.card
    assert loaded.card["test_accuracy"] == str(json.loads((run / "result.json").read_text())["test_accuracy"])
    metadata = {x.key: x.value for x in onnx.load(exported).metadata_props}
    assert metadata == {**loaded.metadata(), **loaded.card, "opset": "21"}
    assert {"classes", "image_shape", "task", "temperature", "preprocessing"} <= metadata.keys()
    assert {"network", "dataset", "recipe", "epochs", "seed", "weights", "limits", "lowcost"} <= metadata.keys()


def test_onnx_needs_no_jax(exported, image_folder):
    """A process in which JAX and its libraries cannot be imported classifies an image from the file alone."""
    picture = next((image_folder / "test" / "dark").iterdir())
    code = (
        "import sys; others = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex', 'sklearn', 'matplotlib', 'scipy',"
        "'tensorflow_datasets', 'array_record', 'rich');"
        "sys.modules.update(dict.fromkeys(others));"
        "from experiments import predict; from pathlib import Path;"
        f"sys.exit(predict.main(predict.PredictConfig((Path({str(picture)!r}),), model=Path({str(exported)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{picture}  ")
    assert done.stdout.rstrip().endswith(" ms")


def test_standard_output_holds_the_file_alone(run, exported, image_folder, tmp_path):
    """`--out` and `--csv` may be /dev/stdout or a link to it; messages then go to standard error."""
    link, out = tmp_path / "link", tmp_path / "out"
    link.symlink_to("/proc/self/fd/1")
    for command, begin in (
        (("export", "--workdir", run, "--out", link), exported.read_bytes()[:100]),
        (("predict", image_folder / "test" / "dark", "--model", exported, "--csv", link), b"file,class,probability,"),
    ):
        with out.open("wb") as file:
            done = subprocess.run(
                [sys.executable, "-m", f"experiments.{command[0]}", *map(str, command[1:])],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.PIPE,
                check=True,
            )
        assert out.read_bytes().startswith(begin)
        assert done.stderr.count(b"\n") == (1 if command[0] == "export" else 9)
        assert link.is_symlink()
    assert len(out.read_text().splitlines()) == 10


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "LA"])
@pytest.mark.parametrize("size", [(16, 16), (40, 23)])
def test_images_are_read_as_in_training(mode, size, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
    elif mode != "RGBA":
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(tmp_path / "picture.png", exif=exif)
    want = read_image(tmp_path / "picture.png", (16, 16)) / np.float32(255)
    np.testing.assert_array_equal(read(tmp_path / "picture.png", Inputs((16, 16, 3))), want)
    Image.fromarray(pixels[..., :3]).resize((200, 150)).save(tmp_path / "picture.jpg")
    want = read_image(tmp_path / "picture.jpg", (16, 16)) / np.float32(255)
    np.testing.assert_array_equal(read(tmp_path / "picture.jpg", Inputs((16, 16, 3))), want)
    assert read(tmp_path / "picture.jpg", Inputs((16, 16, 1))).shape == (16, 16, 1)


def test_a_damaged_picture_is_told_and_the_others_go_on(exported, image_folder, capsys, tmp_path):
    whole = next((image_folder / "test" / "light").iterdir()).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "c.png").write_text("no picture")
    Image.new("RGB", (2000, 20)).save(tmp_path / "d.png")
    Image.new("RGB", (60, 20)).save(tmp_path / "e.png")
    assert predict.main(PredictConfig((tmp_path,), model=exported, max_pixels=1000)) == 2
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == [str(tmp_path / "b.png")]
    assert len(err.splitlines()) == 4
    assert err.count("more than max_pixels 1,000") == 2


def test_predict_finds_every_image_and_prints_names_as_text(exported, tmp_path):
    """Links and formats are read as in training; names are escaped on the screen and exact in the table."""
    model, root, table = onnx.load(exported), tmp_path / "images", tmp_path / "table.csv"
    onnx.helper.set_model_props(
        model, {"classes": json.dumps(["\x1b[31mdark\n", "caf\udce9"]), "image_shape": "[16, 16, 3]"}
    )
    onnx.save(model, tmp_path / "net.onnx")
    (root / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "sub" / "above").symlink_to(root)
    names = [b"a.png", b"b.WebP", b"c.tif", b"sub/d.bmp", b"linked/e.jfif", b"f\xff.png", b"g\nerror: all lost.png"]
    for name in names:
        form = {b"a": None, b"b": "WEBP", b"c": "TIFF", b"d": "BMP", b"e": "JPEG"}.get(name.split(b"/")[-1][:1], "PNG")
        Image.new("RGB", (16, 16)).save(os.fsencode(root) + b"/" + name, form)
    for name in ("._x.png", "notes.txt", "sub/more.txt"):
        (root / name).write_text("no image")
    os.mkfifo(root / "pipe.png")
    run = [sys.executable, "-m", "experiments.predict", root, "--model", tmp_path / "net.onnx", "--csv", table]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, err
    assert len(out.splitlines()) == len(names)
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert {line.split("  ")[1] for line in out.splitlines()} <= {"\\x1b[31mdark\\n", "caf\\udce9"}
    assert f"{root}: ignored 4 entries: 2 .txt, " in err
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(os.fsencode(row["file"]) for row in rows) == sorted(os.fsencode(root) + b"/" + name for name in names)
    assert {row["class"] for row in rows} <= {"\x1b[31mdark\n", "caf\udce9"}
    done = subprocess.run([*run[:3], root / "a.png\n", *run[4:6]], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.decode() == f"error: {root}/a.png\\n: no such file or folder\n"


def test_bad_exports_leave_one_line_and_no_file(run, image_folder, tmp_path):
    """Bad runs, formats, flags and paths give one line, and an older file stays."""
    out = tmp_path / "net.onnx"
    unfinished, damaged, broken, older = (tmp_path / name for name in ("unfinished", "damaged", "broken", "older"))
    for copy in (unfinished, damaged, broken, older):
        subprocess.run(["cp", "-r", run, copy], check=True)
    (unfinished / "result.json").unlink()
    (damaged / "config.json").write_text("{")
    for leaf in (broken / "checkpoints").rglob("*"):
        if leaf.is_file() and leaf.stat().st_size > 100:
            leaf.write_bytes(leaf.read_bytes()[:50])
    (newest,) = (path for path in (older / "checkpoints").iterdir() if path.name == "12")
    subprocess.run(["rm", "-r", newest], check=True)
    out.write_text("an older one")
    stablehlo: dict = {"format": "stablehlo"}
    for workdir, file, options, message in (
        (tmp_path / "nowhere", out, {}, "holds no run"),
        (unfinished, out, {}, "has not finished training: its checkpoint is of step"),
        (damaged, out, {}, "is damaged"),
        (older, out, {}, "the last checkpoint of"),
        (run, tmp_path / "none" / "net.onnx", {}, "is no folder to write to"),
        (run, tmp_path, stablehlo, "is a folder"),
        (run, out, {"tolerance": 0.0}, "tolerance must be above 0"),
        (run, out, {**stablehlo, "bits": 8}, "--bits, --activations and --opset are for --format onnx"),
        (run, out, {"format": "safetensors", "tolerance": 0.1}, "--tolerance is for --format onnx and stablehlo"),
        (run, out, {"activations": 8}, "--activations 8 needs --bits 8, got 32; add it"),
        (run, out, {**stablehlo, "activations": 8}, "--bits, --activations and --opset are for --format onnx"),
        (run, out, {"data_dir": tmp_path}, "--data-dir needs --activations 8, got 32; leave it out, or add it"),
        (run, out, {"opset": 22}, "opset must be from 13 to 21, got 22"),
        (run, out, stablehlo, "--out must not end in .onnx for --format stablehlo, got .*; add --format onnx"),
        (
            run,
            tmp_path / "a.safetensors",
            {},
            "--out must not end in .safetensors for --format onnx, got .*; add --format",
        ),
    ):
        with pytest.raises((ValueError, OSError), match=message) as error:
            export.main(ExportConfig(workdir, file, **options))
        assert "\n" not in str(error.value)
    for flags, message, errors in (("--workdir", broken), "damaged", 1), (("--format", "tflite"), "tflite", 0):
        command = [sys.executable, "-m", "experiments.export", "--out", out, "--workdir", run, *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == errors
    assert out.read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("broken", "damaged", "net.onnx", "older", "unfinished")
    ]


def test_bad_models_are_told(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "RELEASED", tmp_path / "none")
    model = onnx.load(exported)
    onnx.helper.set_model_props(model, {"classes": "[]", "image_shape": "[16, 16, 3]"})
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:1000])
    (tmp_path / "cut.stablehlo").write_bytes(b"nothing")
    (tmp_path / "cut.safetensors").write_bytes(b"nothing")
    for source, message in (
        ({}, "either --workdir or --model must be given, got neither"),
        ({"model": tmp_path / "cut.onnx"}, r"cut\.onnx cannot be used as ONNX file"),
        ({"model": tmp_path / "other.onnx"}, r"logits of shape \[1, 2\] for one image and 0 classes"),
        ({"model": exported, "runtime": "jax"}, "JAX does not run"),
        (
            {"model": tmp_path / "cut.stablehlo"},
            r"cut\.stablehlo\.json must hold the names of the classes, got no file",
        ),
        ({"model": tmp_path / "cut.safetensors"}, r"cut\.safetensors must be a \.safetensors file of lowcost\.save"),
        ({"model": Path("nothing")}, "source must be .*, got nothing; released are none"),
        ({"model": tmp_path / "nothing.onnx"}, r"nothing\.onnx"),
        ({"workdir": tmp_path / "nowhere"}, "holds no run"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            classifiers.load(**source)
    (tmp_path / "cut.stablehlo.json").write_text('{"classes": "[]", "image_shape": "[]"}')
    with pytest.raises(ValueError, match=r"cut\.stablehlo cannot be used as StableHLO file"):
        classifiers.load(model=tmp_path / "cut.stablehlo")
    for content in ("{", "[]", '{"classes": "[]"}'):
        (tmp_path / "cut.stablehlo.json").write_text(content)
        with pytest.raises(ValueError, match=r"cut\.stablehlo\.json cannot be used as metadata file"):
            classifiers.load(model=tmp_path / "cut.stablehlo")
    (tmp_path / "empty").mkdir()
    for image_folder, options, message in (
        ((), {}, "files must be images, arrays, or folders of them, got none"),
        ((tmp_path / "empty",), {}, r"no \.png"),
        ((tmp_path / "nothing.png",), {}, "no such file or folder"),
        ((exported,), {"csv": tmp_path / "none" / "table.csv"}, "is no folder to write to"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            predict.main(PredictConfig(image_folder, model=exported, **options))


def test_the_table_of_all_forms(run, tmp_path, monkeypatch):
    """Writes the short table; StableHLO and exact ONNX files give the predictions of the network."""
    measured = deploy.peak_memory.of_form

    def once(form, path):  # starting JAX takes seconds
        return measured(form, path) if form == "ONNX, exact" else 1000.0

    monkeypatch.setattr(deploy.peak_memory, "of_form", once)
    out = tmp_path / "deploy"
    deploy.main(deploy.Config((run,), rounds=1, singles=3, tolerance=0.1, out=out))
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert out.with_suffix(".md").read_text() == deploy.markdown(rows)
    *forms, agreement = rows
    assert [row["form"] for row in forms][:3] == ["JAX", "JAX, folded", "StableHLO"]
    assert len(forms) == 7
    assert 20 < forms[3]["peak_mib"] < 150
    for name in ("StableHLO", "ONNX, exact"):
        assert agreement[name]["difference"] < 1e-4
        assert agreement[name]["predictions"] == 0
    assert 0 < forms[0]["layer_ratio"] <= 1
    assert 0 < forms[0]["observed"] <= forms[0]["bound"]
