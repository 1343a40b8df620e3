"""Tests the study of the signal over depth: what it measures and writes, and bounds at initialisation."""

import json

import numpy as np

from experiments.depth import Config, main, measure
from lowcost.nn import ARCHITECTURES


def test_the_signal_neither_explodes_nor_dies(tmp_path, capsys):
    """In every architecture the variance grows at most linearly with the steps of a block."""
    main(Config(steps_per_block=(2, 8), width=(32, 64), images=16, out=tmp_path / "results/depth"))
    rows = [json.loads(line) for line in (tmp_path / "results/depth.jsonl").read_text("utf-8").splitlines()]
    assert [(row["steps_per_block"], row["architecture"]) for row in rows] == [
        (steps, architecture) for steps in (2, 8) for architecture in ARCHITECTURES
    ]
    for row in rows:
        assert len(row["variances"]) == 2 * row["steps_per_block"]
        assert row["smallest"] == min(row["variances"]) > 0.1
        assert row["largest"] == max(row["variances"]) < 1 + row["steps_per_block"]
        assert 0 < row["images_apart"] <= 1
    table = (tmp_path / "results/depth.md").read_text("utf-8")
    assert all(" | ".join(f"{x:.2f}" for x in row["block_ends"]) in table for row in rows)
    assert (tmp_path / "results/depth.png").stat().st_size > 1000
    assert "before training" in capsys.readouterr().out


def test_a_network_without_a_time_step_is_measured_for_every_h():
    row = measure(Config(h=0.5, width=(4,)), 1, "mobilenet", np.random.default_rng(0).uniform(size=(2, 8, 8, 1)))
    assert row["h"] is None
