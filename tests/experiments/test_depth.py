"""The signal over depth: measured, and bounded at initialisation."""

import json

import numpy as np
import pytest

from experiments.depth import Config, main, measure
from lowcost.nn import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_signal_neither_explodes_nor_dies(architecture):
    """At most linear growth of the variance with the steps of a block, the root of the depth in the signal itself."""
    images = np.random.default_rng(0).uniform(size=(16, 8, 8, 3))
    for steps in (4, 16):
        row = measure(architecture, images, steps, width=(8, 16))
        assert len(row["variances"]) == 2 * steps
        assert row["smallest"] > 0.1
        assert row["largest"] < 1 + steps


def test_writes_the_table(tmp_path, capsys):
    main(Config(steps_per_block=(1, 2), images=8, out_dir=tmp_path / "results"))
    rows = [json.loads(line) for line in (tmp_path / "results/depth.jsonl").read_text("utf-8").splitlines()]
    assert [(row["architecture"], row["steps_per_block"]) for row in rows] == [
        (a, n) for n in (1, 2) for a in ARCHITECTURES
    ]
    table = (tmp_path / "results/depth.md").read_text("utf-8")
    assert all(f"| {row['block_ends'][0]:.2f} | {row['block_ends'][1]:.2f} |" in table for row in rows)
    assert (tmp_path / "results/depth.png").stat().st_size > 1000
    assert "before training" in capsys.readouterr().out
