"""Trains, evaluates, exports and predicts tags and values of real images, scikit-learn's digits."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score, r2_score

from experiments import deploy, evaluate, export, predict, robustness
from experiments.common import classifiers, runs, training
from experiments.common.config import TrainConfig

COUNT = 240


def write(root, task):
    """Writes the digits and labels.csv: whether a digit is even and has a loop, or its ink in two units."""
    scans, digits = load_digits(return_X_y=True)
    scans, digits = scans.reshape(-1, 8, 8)[:COUNT], digits[:COUNT]
    ink = scans.mean((1, 2))
    names, columns = {
        "tags": ("even,loop", (digits % 2 == 0, np.isin(digits, (0, 6, 8, 9)))),
        "values": ("ink,far", (ink, 1000 + 100 * ink)),
    }[task]
    root.mkdir()
    lines = [f"file,{names}"]
    for i, (scan, *row) in enumerate(zip(scans, *columns, strict=True)):
        Image.fromarray((scan * 15).astype(np.uint8)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{','.join(str(float(x)) for x in row)}")
    (root / "labels.csv").write_text("\n".join(lines))
    return {f"{i}.png": row for i, row in enumerate(np.stack(columns, axis=1).astype(float))}


def table(path):
    """Returns image → its numbers, from a table of `evaluate` or `predict`."""
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return {row[0].rpartition("/")[2]: np.array(row[1:], float) for row in rows}


@pytest.mark.parametrize("task", ["tags", "values"])
def test_from_a_table_of_labels_to_a_file(task, tmp_path, capsys):
    root, workdir, model = tmp_path / "images", tmp_path / "run", tmp_path / "net.onnx"
    given = write(root, task)
    fields = {"width": (8,), "steps_per_block": 1, "batch_size": 20, "epochs": 8, "learning_rate": 0.03}
    fields |= {"validation_share": 0.2, "keep_best": True, "flip": "none", "workdir": workdir, "data_dir": root}
    config = TrainConfig("folder", task=task, label_smoothing=0.1 if task == "tags" else 0.0, **fields)
    if task == "tags":
        assert training.run(dataclasses.replace(config, dry_run=True)) == 0
        shown = capsys.readouterr().out
        assert not workdir.exists()
        assert all(
            name in shown for name in ("validation images", "weights", "an epoch", "peak memory", "all 8 epochs")
        )
    assert training.run(config) == 0
    check_result(task, workdir, capsys.readouterr().out)

    evaluate.main(evaluate.EvaluateConfig(workdir, csv=tmp_path / "evaluated.csv"))
    shown, rows = capsys.readouterr().out, table(tmp_path / "evaluated.csv")
    true, answers = (np.array([row[part] for row in rows.values()]) for part in (slice(2), slice(2, 4)))
    np.testing.assert_allclose(true, [given[file] for file in rows], rtol=1e-5)
    quality = f1_score(true, answers >= 0.5, average=None) if task == "tags" else r2_score(true, answers)
    assert f"mean F1 {np.mean(quality):.2%}" in shown if task == "tags" else f"mean R² {np.mean(quality):.3f}" in shown
    assert np.mean(quality) > 0.3  # better than the mean, and for tags than a guess

    for program in (robustness, deploy):
        with pytest.raises(ValueError, match=f"must hold a network for classes, got {task}; choose another"):
            program.Subject(workdir, program.Config((workdir,)))
    export.main(export.ExportConfig(workdir, model))
    ready, state = runs.reopen(workdir, root)
    images = ready.dataset.test.images / np.float32(255)
    logits = np.asarray(classifiers.load(model=model).logits(images))
    np.testing.assert_allclose(logits, ready.outputs(state.chosen, ready.dataset.test.images)[0], atol=1e-4)
    files = tuple(root / file for file in ready.dataset.test.files)
    assert predict.main(predict.PredictConfig(files, model=model, csv=tmp_path / "predicted.csv")) == 0
    for file, row in table(tmp_path / "predicted.csv").items():
        np.testing.assert_allclose(row[1:], rows[file][2:], rtol=1e-3, atol=1e-4)


def check_result(task, workdir, shown):
    """Checks that result, log and curves have a loss, and for tags also an accuracy."""
    result = json.loads((workdir / "result.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (best,) = result["chosen"]["epochs"]
    chosen = lines[best - 1]
    assert result["task"] == task
    assert result["test_losses"] == [pytest.approx(chosen["test_loss"], rel=1e-5)]
    assert "temperatures" not in result
    if task == "tags":
        assert result["test_accuracies"] == [result["test_accuracy"]] == [pytest.approx(chosen["test_accuracy"])]
        assert best == 1 + np.argmax([line["validation_accuracy"] for line in lines])
        assert f"{result['test_accuracy']:.2%} of {result['test_images']} images" in shown
    else:
        assert result["test_accuracy"] is result["test_accuracies"] is result["test_accuracy_std"] is None
        assert best == 1 + np.argmin([line["validation_loss"] for line in lines])
        assert not any("accuracy" in name for line in lines for name in line)
        assert f"{result['test_losses'][0]:.4f} of {result['test_images']} images" in shown
        assert len(json.loads((workdir / "config.json").read_text())["data"]["scale"][0]) == 2
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
