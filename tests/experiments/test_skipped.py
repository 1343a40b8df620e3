"""Tests reports of skipped steps: in the line of the epoch, the last table, the exit status, and valid JSON files."""

import json
import math

import pytest
from rich.console import Console

from experiments import robustness
from experiments.common import outcome, training
from experiments.common.config import TrainConfig
from experiments.common.entry import DIVERGED
from experiments.common.files import read_rows, write_rows
from experiments.common.plots import draw_curves
from experiments.common.recipes import Recipe

EXPLODING = Recipe(learning_rate=1e38)
"""The first step has a finite loss; those after it have none."""


def strictly(text):
    """Returns the content of a JSON text, which must hold no NaN or Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_whose_last_epoch_has_no_finite_step(tmp_path, capsys):
    """The run ends with status 3, one line, no result and no checkpoint; the line of epoch 1 reports its skips."""
    config = TrainConfig(
        *("digits", "explicit_rd"), steps_per_block=1, train_images=60, batch_size=20, epochs=2, workdir=tmp_path
    )
    assert training.run(config, EXPLODING) == DIVERGED
    out, err = capsys.readouterr()
    assert "  2 steps skipped so far" in out.splitlines()[0]
    assert err == (
        "error: step 6: the loss and its gradient must be finite, got other values in the last 5 steps; check the "
        "data, or train with a smaller learning rate or time step\n"
    )
    rows = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["skipped"], row["test_loss"]) for row in rows] == [(2, None)]
    assert not (tmp_path / "result.json").exists()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    draw_curves(rows, tmp_path / "curves.png", title="with null")
    draw_curves(
        [*rows, {"epoch": 2, "train_loss": None, "train_accuracy": None}], tmp_path / "curves.png", title="only null"
    )


@pytest.mark.parametrize("skipped", [0, 1234])
def test_the_last_table_reports_skipped_steps(tmp_path, skipped):
    result = {
        "architecture": "a",
        "width": "A",
        "dataset": "d",
        "weights": 1,
        "test_images": 8,
        "seeds": 1,
        "epochs": 2,
    }
    result |= {"test_accuracy": 0.5, "test_accuracy_std": None, "train_seconds": 1.0, "images_per_second": None}
    with (tmp_path / "output").open("w") as output:
        outcome.print_result(
            Console(file=output, width=100), {**result, "peak_memory_gib": 1.0, "skipped_steps": skipped}, tmp_path
        )
    assert ("skipped steps" in (tmp_path / "output").read_text()) == bool(skipped)
    assert ("1,234" in (tmp_path / "output").read_text()) == bool(skipped)


def test_figures_are_json_and_their_readers_take_null(tmp_path):
    """NaN and infinities become null at any depth; a page made of the file equals the page made of the figures."""
    about = {"architecture": "resnet", "dataset": "d", "seed": 0, "images": 4, "accuracy": 0.5, "flags": ""}
    noise = {"layers": ["l"], "differences": [math.nan], "ratios": [math.inf], "lipschitz_up_to": [math.inf]}
    rows = [
        {"workdir": "a", **about, "kind": "image noise", "strength": 2, "change": math.nan, "bound": math.inf, **noise},
        {"workdir": "a", **about, "kind": "h times", "strength": 4, "change": -math.inf, "amplification": 2.0},
    ]
    path = tmp_path / "robustness.jsonl"
    write_rows(path, rows)
    there = [strictly(line) for line in path.read_text().splitlines()]
    assert there == read_rows(path)
    assert (there[0]["change"], there[0]["differences"], there[1]["change"]) == (None, [None], None)
    assert robustness.markdown(there) == robustness.markdown(rows)
    robustness.draw(there, tmp_path / "robustness.png")
