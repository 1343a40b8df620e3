"""`stability` and `robustness` on a network that is hardly trained: what they measure, and that the bounds hold."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import robustness, stability, train
from experiments.config import TrainConfig

RESULTS = Path("experiments/results")


def test_both_on_a_run(tmp_path):
    """Explicit steps outgrow every limit at h = 100; no change of the logits passes its bound; both pages are made."""
    run = TrainConfig(
        architecture="explicit_rd", steps_per_block=2, epochs=1, train_images=200, workdir=tmp_path / "explicit"
    )
    assert train.run(run) == 0
    rows = stability.measure(run, (0.1, 1.0, 100.0), 8)
    assert [row["weights"] for row in rows] == ["initial", "trained", "trained"]
    assert all(row["growth"][-1] > stability.LIMIT and row["growth"][0] < 10 for row in rows)
    page = stability.markdown(rows)
    assert "| 2 | initial | of the batch | explicit_rd |" in page
    stability.draw(rows, tmp_path / "stability.png")

    config = robustness.Config(
        bits=(4,), weight_noise=(5,), image_noise=(10,), blur=(1,), steps=(2,), images=8, out_dir=tmp_path
    )
    rows = [
        {"run": "explicit", "workdir": "explicit", **row} for row in robustness.measure(tmp_path / "explicit", config)
    ]
    kinds = ["as it is", "bfloat16", "bits", "weight noise", "image noise", "blur", "h times"]
    assert [row["kind"] for row in rows] == kinds
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    for row in rows[1:-1]:
        assert 0 < row["change"] <= row["bound"]
    noise = rows[4]
    assert noise["layers"][0] == "opening"
    assert noise["layers"][-1] == "classifier"
    assert all(ratio <= bound * (1 + 1e-5) for ratio, bound in zip(noise["ratios"], noise["lipschitz"], strict=True))
    page = robustness.markdown(rows)
    assert "| bits 4 |" in page
    robustness.draw(rows, tmp_path / "robustness.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("stability", "robustness"))


def test_where_growth_passes_the_limit():
    """The largest h before the first that is too much; what overflows is too much."""
    row = {"h": [0.1, 1, 10, 100], "growth": [1, 2, None, 3]}
    assert stability.bounded_up_to(row) == 1
    assert stability.bounded_up_to({**row, "growth": [1, 2, 3, 4]}) == 100
    assert stability.bounded_up_to({**row, "growth": [math.inf, 2, 3, 4]}) is None


def test_rounded_weights_lie_on_a_grid_of_so_many_bits():
    """2^bits - 1 values at most, symmetric, the largest weight among them."""
    weights = {"w": jnp.linspace(-1, 0.5, 1000)}
    config = robustness.Config(bits=(4,), weight_noise=(50,))
    rounded = {kind: tree["w"] for kind, _, tree in robustness.disturbed_weights(weights, config)}
    values = np.unique(rounded["bits"])
    assert len(values) <= 15
    assert values[0] == -1
    np.testing.assert_allclose(values * 7, np.round(values * 7), atol=1e-6)
    spread = np.std(rounded["weight noise"] - weights["w"]) / np.sqrt(np.mean(weights["w"] ** 2))
    assert spread == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("program", [stability, robustness], ids=["stability", "robustness"])
def test_the_committed_pages_are_made_of_the_committed_figures(program):
    path = RESULTS / f"{program.__name__.rpartition('.')[2]}.jsonl"
    if not path.exists():
        pytest.skip("not measured yet")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.with_suffix(".md").read_text() == program.markdown(rows)
