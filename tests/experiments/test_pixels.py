"""Trains, evaluates, exports and runs networks that label every point of images and signals."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

import lowcost
from experiments import deploy, evaluate, export, predict, robustness
from experiments.common import masks, outcome, pixel_evaluation, runs, training
from experiments.common.classifiers import Classifier
from experiments.common.config import TrainConfig
from experiments.common.inputs import Inputs
from lowcost.data import Split

GRIDS = {"folder": (8, 8), "arrays": (16,)}


@pytest.fixture(scope="module", params=GRIDS)
def trained(request, tmp_path_factory):
    """Returns a run on bright stripes with unlabelled first points: two seeds on images, one on signals."""
    root = tmp_path_factory.mktemp(request.param)
    rng, grid = np.random.default_rng(0), GRIDS[request.param]
    labels = np.zeros((60, *grid), np.uint8)
    labels[:, :3] = 1
    labels = np.stack([np.roll(x, rng.integers(16), 0) for x in labels])
    images = (60 + 120 * labels[..., None] + rng.normal(0, 20, (*labels.shape, 3))).astype(np.uint8)
    labels[:, 0] = 255
    parts = {"train": slice(36), "val": slice(36, 48), "test": slice(48, 60)}
    if request.param == "folder":
        for part, rows in parts.items():
            for name, arrays in (("images", images), ("masks", labels)):
                (root / part / name).mkdir(parents=True)
                for i, array in enumerate(arrays[rows]):
                    Image.fromarray(array).save(root / part / name / f"{i}.png")
        data_dir = root
    else:
        pairs = [(f"{part}_{name}", x[rows]) for part, rows in parts.items() for name, x in
                 (("images", images), ("labels", labels))]  # fmt: skip
        data_dir = root / "data.npz"
        np.savez(data_dir, **dict(pairs))
    fields = {"width": (4,), "steps_per_block": 1, "batch_size": 12, "epochs": 6, "learning_rate": 0.03}
    fields |= {"keep_best": True, "class_weights": "auto", "seeds": 2 if request.param == "folder" else 1}
    folder = {"width": (4, 8), "decoder": True, "zero_mean": True}
    fields |= folder if request.param == "folder" else {"task": "pixels"}
    assert training.run(TrainConfig(request.param, data_dir=data_dir, workdir=root / "run", **fields)) == 0
    return root / "run", images[parts["test"]], labels[parts["test"]]


def test_the_figures_are_those_of_all_labelled_points(trained, tmp_path, capsys):
    """result.json, the log, `evaluate`, and scikit-learn on the predictions give the same figures."""
    workdir, images, labels = trained
    evaluate.main(evaluate.EvaluateConfig(workdir, csv=tmp_path / "table.csv", out=tmp_path))
    shown = capsys.readouterr().out
    config, result = (json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "result"))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert config["task"] == result["task"] == "pixels"
    assert result["chosen"]["by"] == "validation mean IoU"
    ready, state = runs.reopen(workdir, None)
    assert lowcost.load(workdir).net.step == ready.net.step
    assert ready.net.step.keywords.get("zero_mean", False) == ready.net.decoder == (config["dataset"] == "folder")
    every, known = ready.outputs(state.chosen, images).argmax(-1), labels != 255
    for i, predicted in enumerate(every):
        pair = labels[known], predicted[known]
        figures = {"mean_ious": jaccard_score(*pair, average="macro"), "mean_dices": f1_score(*pair, average="macro")}
        figures["accuracies"] = (pair[0] == pair[1]).mean()
        for name, figure in figures.items():
            assert result[f"test_{name}"][i] == pytest.approx(figure, rel=1e-6)
        iou = f"seed {i}: mean IoU {figures['mean_ious']:.2%}, mean Dice {figures['mean_dices']:.2%}"
        assert f"{iou}, accuracy {figures['accuracies']:.2%}" in shown
        best = [row.get("validation_mean_iou_seeds", [row["validation_mean_iou"]])[i] for row in rows]
        assert result["chosen"]["epochs"][i] == 1 + np.argmax(best)
    assert result["test_mean_iou"] > 0.5  # one class everywhere gives 0.4
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "overlays.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "table.csv").open(newline="") as file:
        (*header, _, _), *lines = csv.reader(file)
    assert header == ["image", "accuracy"]
    assert len(lines) == len(labels)
    if len(every) == 1:
        right = (every[0] == labels).reshape(len(labels), -1).sum(1) / known.reshape(len(labels), -1).sum(1)
        np.testing.assert_allclose([float(line[1]) for line in lines], right, atol=1e-6)


def test_figures_of_images_without_labels_are_not_numbers():
    """The log has None for them, and the result is computed with NaN."""
    config = TrainConfig("arrays", task="pixels", seeds=2)
    ready = SimpleNamespace(config=config, dataset=SimpleNamespace(task="pixels"))
    names = ("test_loss", "test_accuracy", "test_mean_iou", "test_mean_dice")
    row = dict.fromkeys(names) | {f"{name}_seeds": [None, None] for name in names}
    log = SimpleNamespace(rows=[row], last_epoch=lambda: 1)
    tests = outcome.measured(ready, None, log)["tests"]
    assert all(np.isnan(figures).all() for figures in tests.values())
    assert np.isnan(outcome._deviation(tests["accuracy"]))


def test_a_finished_run_is_left_as_it_is(trained, capsys):
    """The same command changes nothing; for folders of images it need not state the task."""
    workdir, *_ = trained
    before = (workdir / "result.json").read_bytes()
    config = runs.trained(workdir).config
    network = ("width", "decoder", "zero_mean", "steps_per_block")
    fields = {name: getattr(config, name) for name in (*network, "batch_size", "epochs")}
    fields |= {name: getattr(config, name) for name in ("learning_rate", "keep_best", "class_weights", "seeds")}
    fields |= {} if config.dataset == "folder" else {"task": "pixels"}
    again = TrainConfig(config.dataset, data_dir=config.data_dir, workdir=workdir, **fields)
    assert training.run(again) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert (workdir / "result.json").read_bytes() == before


def test_masks_of_a_run_and_of_exported_files(trained, tmp_path, capsys):
    """The run, a .safetensors and an .onnx file write the same masks, as palette images or arrays."""
    workdir, images, _ = trained
    signals = images.ndim == 3
    source = tmp_path / "signals.npy"
    np.save(source, images)
    if not signals:
        source = tmp_path / "new.png"
        Image.fromarray(images[0]).save(source)
    written = {}
    for name in ("run", "net.safetensors", "net.onnx"):
        if name != "run":
            export.main(export.ExportConfig(workdir, tmp_path / name, format=name[4:]))
        model = {"workdir": workdir} if name == "run" else {"model": tmp_path / name}
        out = tmp_path / f"masks of {name}"
        assert predict.main(predict.PredictConfig((source,), out=out, csv=tmp_path / "shares.csv", **model)) == 0
        files = sorted(out.iterdir())
        assert [x.name for x in files[:2]] == (["signals[0].npy", "signals[10].npy"] if signals else ["new.png"])
        assert len(files) == (len(images) if signals else 1)
        written[name] = [np.load(x) if signals else np.asarray(Image.open(x)) for x in files]
    for name in ("net.safetensors", "net.onnx"):
        np.testing.assert_array_equal(written["run"], written[name])
    loaded = lowcost.load(tmp_path / "net.safetensors")
    assert (loaded.task, loaded.net.head, loaded.image_shape) == ("pixels", "pixels", images.shape[1:])
    mask = loaded.net.apply(loaded.variables, images[:1] / np.float32(255)).argmax(-1)[0]
    np.testing.assert_array_equal(written["run"][0], mask)
    with (tmp_path / "shares.csv").open(newline="") as file:
        _, line, *_ = csv.reader(file)
    np.testing.assert_allclose(np.array(line[2:], float), [(mask == i).mean() for i in range(2)], atol=1e-6)
    assert f"1  {(mask == 1).mean():.1%}" in capsys.readouterr().out


def test_what_makes_no_sense_is_refused(trained, tmp_path):
    """Refuses programs for classes, and masks without a folder, over other files, or twice under one name."""
    workdir, images, _ = trained
    for program in (robustness, deploy):
        with pytest.raises(ValueError, match="must hold a network for classes, got pixels; choose another"):
            program.Subject(workdir, program.Config((workdir,)))
    if images.ndim == 3:
        return
    files = tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"
    for file in files:
        file.parent.mkdir()
        Image.fromarray(images[0]).save(file)
    before = files[0].read_bytes()
    with pytest.raises(ValueError, match=r"--out must be a folder for masks, .* got None; add --out DIR"):
        predict.main(predict.PredictConfig(files, workdir))
    for inputs, out, got in (
        (files[:1], tmp_path / "a", "an existing file for .*x.png; choose another"),
        (files[:1], tmp_path / "b", "an existing file"),
        (files, tmp_path / "masks", "the masks of .*x.png and .*x.png"),
    ):
        with pytest.raises(ValueError, match=rf"x.png must be a new file for one mask, got {got}"):
            predict.main(predict.PredictConfig(inputs, workdir, out=out))
    assert files[0].read_bytes() == before
    assert not (tmp_path / "masks").exists()


def test_the_confusions_of_each_image_are_those_of_the_ensemble(capsys):
    """They equal scikit-learn's, and the printed line of each network is that of its own predictions."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 5, 4, 6, 3)), rng.integers(0, 3, (5, 4, 6), np.uint8)
    names = SimpleNamespace(classes=("a", "b", "c"))
    ready = SimpleNamespace(
        dataset=names, config=SimpleNamespace(batch_size=5, seed=7), outputs=lambda variables, images: logits
    )
    predicted, confusions = pixel_evaluation.report(ready, None, Split(np.zeros((5, 4, 6, 1), np.uint8), labels), print)
    np.testing.assert_array_equal(predicted, softmax(logits, -1).mean(0).argmax(-1))
    for found, *pair in zip(confusions, labels, predicted, strict=True):
        np.testing.assert_array_equal(found, confusion_matrix(*map(np.ravel, pair)))
    shown = capsys.readouterr().out
    for i, single in enumerate(logits.argmax(-1)):
        score = jaccard_score(labels.ravel(), single.ravel(), average="macro")
        assert f"seed {7 + i}: mean IoU {score:.2%}" in shown


def test_masks_of_arrays_replace_no_file(tmp_path):
    """An input and the mask of another input remain, although the names are known only after reading the arrays."""
    classifier = Classifier(lambda x: np.repeat(x, 2, -1), ["a", "b"], Inputs((4, 1), "float32"), "pixels")
    files = tmp_path / "a" / "x.npy", tmp_path / "b" / "x.npy"
    for file in files:
        file.parent.mkdir()
        np.save(file, np.zeros((2, 4, 1), np.float32))
    targets = predict.Targets(tmp_path / "a", classifier, files)
    targets.write(predict.classify(classifier, "a/x.npy[0]", np.zeros((4, 1), np.float32), 1))
    assert np.load(tmp_path / "a" / "x[0].npy").shape == (4,)
    for name in ("b/x.npy[0]", "a/x.npy"):
        with pytest.raises(ValueError, match="must be a new file for one mask, got"):
            targets.write(predict.classify(classifier, name, np.zeros((4, 1), np.float32), 1))
    assert np.load(files[0]).shape == (2, 4, 1)


def test_the_colours_are_those_of_pascal_voc():
    assert masks.COLOURS[[0, 1, 2, 3, 4, 8, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [64, 0, 0], [0, 64, 128], [224, 224, 192]),
    ]
