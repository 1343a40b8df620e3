"""Tests the study of signals: folds stay in the training split, finished networks are kept, targets are compared."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import signals
from experiments.signals import PUBLISHED, Config, folded, main, markdown, read


def row(name, accuracies, weights, together=0.95):
    """Returns a row of results with the fields that the page shows."""
    kind = {"set": name, "architecture": "explicit_rd", "channels": 12, "weights": weights, "flags": ""}
    return kind | {"accuracies": accuracies, "accuracy": sum(accuracies) / len(accuracies), "together": together}


@pytest.mark.parametrize(
    ("weights", "target", "joint"),
    [(9000, "92.8 reached, ", "93.7 reached, "), (90_000, "93.7 missed, ", ""), (900_000, "", "")],
)
def test_the_page_says_whether_a_target_is_reached(weights, target, joint):
    """The mean of five is over sets first and seeds second; networks with more weights have no target."""
    page = markdown(
        [row(name, [0.92, 0.94], weights) for name in PUBLISHED] + [row("JapaneseVowels", [0.5, 0.5], 9000, 0.98)]
    )
    five = " | ".join(["93.0"] * 5)
    assert f"| explicit_rd 12 | {weights:,} | {five} | 50.0 | 93.00 ± 1.41 | {target}97.0 missed |" in page
    five = " | ".join(["95.0"] * 5)
    assert f"| 2 x explicit_rd 12 | {2 * weights:,} | {five} | 98.0 | 95.00 | {joint}97.0 reached |" in page
    assert "| LITE |  | 82.2 | 95.6 | 89.8 | 96.9 | 99.7 |  | 92.84 |  |" in page


def test_folds_are_disjoint_balanced_parts_of_the_training_split():
    labels = np.array(list("aaaabbbbbbcc"))
    content = {"train_images": np.arange(12.0), "train_labels": labels, "train_lengths": np.arange(12)}
    parts = list(folded(3, 0, content))
    tests = [part["test_images"] for part in parts]
    assert sorted(np.concatenate(tests)) == list(range(12))
    for part in parts:
        assert sorted([*part["train_images"], *part["test_images"]]) == list(range(12))
        np.testing.assert_array_equal(part["test_labels"], labels[part["test_images"].astype(int)])
        np.testing.assert_array_equal(part["test_lengths"], part["test_images"])
        assert [np.sum(part["test_labels"] == label) for label in "ab"] in ([1, 2], [2, 2])
    assert list(folded(0, 0, content)) == [content]


def test_there_must_be_signals_for_a_batch(tmp_path, monkeypatch):
    content = {"train_images": np.zeros((6, 7, 1)), "train_labels": np.array(list("ababab"))}
    monkeypatch.setattr(signals, "read", lambda name, official: content)
    config = Config(("ArrowHead",), workdir=tmp_path / "signals", out=tmp_path / "out")
    with pytest.raises(ValueError, match="--batch-size must be at most the 6 training examples, got 8"):
        main(config)
    with pytest.raises(ValueError, match="--folds must be 0 or at least 2, got 1"):
        main(dataclasses.replace(config, folds=1))


def test_rows_of_older_versions_are_kept(tmp_path, monkeypatch, capsys):
    """Rows whose recipe lacks newer ingredients are not measured again."""
    recipe = {name: value for name, value in dataclasses.asdict(signals.RECIPE).items() if name != "mixed"}
    config = Config(("GunPoint",), ("explicit_rd",), workdir=tmp_path / "signals", out=tmp_path / "out")
    without = ("workdir", "sets", "architectures", "channels")
    flags = signals.Results(config, markdown, without=without).flags
    kept = row("GunPoint", [0.9, 0.9], 9000) | {"recipe": recipe, "flags": flags}
    (tmp_path / "out.jsonl").write_text(json.dumps(kept) + "\n")
    monkeypatch.setattr(signals, "measure", lambda *given: pytest.fail("it is measured again"))
    monkeypatch.setattr(signals, "markdown", lambda rows, name: "page")
    main(config)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == kept


def test_cross_validation_never_reads_a_test_split(monkeypatch):
    datasets = pytest.importorskip("aeon.datasets")
    asked = []

    def load(name, split):
        asked.append(split)
        return np.zeros((3, 2, 7)), np.array(["1", "2", "1"])

    monkeypatch.setattr(datasets, "load_classification", load)
    content = read("GunPoint", official=False)
    assert asked == ["train"]
    assert {name: array.shape for name, array in content.items()} == {"train_images": (3, 7, 2), "train_labels": (3,)}


def test_signals_of_different_lengths_are_padded(monkeypatch):
    datasets = pytest.importorskip("aeon.datasets")
    lengths = {"train": (3, 5), "test": (4, 2)}
    splits = {part: ([np.ones((2, n)) for n in lengths[part]], np.array(["a", "b"])) for part in lengths}
    monkeypatch.setattr(datasets, "load_classification", lambda name, split: splits[split])
    content = read("JapaneseVowels", official=True)
    for part, expected in lengths.items():
        np.testing.assert_array_equal(content[f"{part}_lengths"], expected)
        valid = np.arange(5) < np.array(expected)[:, None]
        np.testing.assert_array_equal(content[f"{part}_images"], np.broadcast_to(valid[..., None], (2, 5, 2)))


@pytest.mark.parametrize("folds", [0, 2])
def test_trains_writes_and_keeps_what_is_finished(tmp_path, capsys, monkeypatch, folds):
    pytest.importorskip("aeon")
    wanted = {"sets": ("ItalyPowerDemand",), "architectures": ("explicit_rd",), "channels": (2,), "folds": folds}
    short = {"steps_per_block": 1, "steps": 2, "batch_size": 16, "seeds": 2}
    config = Config(**wanted, **short, workdir=tmp_path / "signals", out=tmp_path / "out")
    main(config)
    (line,) = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    result = json.loads(line)
    assert result["test_signals"] == (67 if folds else 1029)
    assert len(result["accuracies"]) == 2
    assert 0 < result["accuracy"] <= 1
    assert f"{100 * result['accuracy']:.1f} |" in (tmp_path / "out.md").read_text("utf-8")
    monkeypatch.setattr(signals, "train", lambda run: pytest.fail("trained again"))
    main(config)
    assert (tmp_path / "out.jsonl").read_text("utf-8").splitlines() == [line]
    assert "ItalyPowerDemand" in capsys.readouterr().out
