"""Tests the best epoch by validation: what is kept, when training ends early, and that resumes change nothing."""

import jax
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from train.test_streaks import EPOCH, IMAGES, LABELS, Linear, StopAt

from lowcost.train.checkpoint import Checkpoints
from lowcost.train.loop import ended_early, fit, steps_done
from lowcost.train.metrics_log import MetricsLog, repaired_rows
from lowcost.train.state import create_state, keep_best
from lowcost.train.step import make_train_step, repeat

OPTIMIZER = optax.adam(1e-2)
STEPS = jax.jit(repeat(make_train_step(Linear(), OPTIMIZER, lambda images, draw: images, EPOCH)))
INITIAL = jax.jit(lambda key: create_state(Linear(), OPTIMIZER, key, (4, 4, 1), best=True))(jax.random.key(0))
BEST = jax.jit(keep_best)


def train(workdir, scores, patience=None, stop=99, evaluated=lambda: None):
    """Returns state and log after at most one epoch for each score, from the newest checkpoint on."""
    workdir.mkdir(exist_ok=True)
    interruption, checkpoints = StopAt(stop), Checkpoints(workdir / "checkpoints")

    def batches(step, n, following):
        interruption.now = step + n - 1
        row = [step % 12]
        return [IMAGES[row], LABELS[row], np.arange(8, dtype=np.int32)[None]]

    def validate(state):
        epoch = np.int32(steps_done(state) // EPOCH)
        score = np.float32(scores[epoch - 1])
        return {"loss": 1 - score, "accuracy": score}, BEST(state, score, epoch)

    def evaluate(state):
        evaluated()
        return None if interruption.stop_requested() else {"loss": np.float32(0), "accuracy": np.float32(1)}

    step, state, *_ = checkpoints.restore_newest(INITIAL) or (0, INITIAL)
    path = workdir / "metrics.jsonl"
    options = {"steps_per_epoch": EPOCH, "epochs": len(scores), "steps_max": 1, "patience": patience}
    outputs = {"console": Console(quiet=True), "checkpoints": checkpoints, "interruption": interruption}
    log = MetricsLog(repaired_rows(path, step // EPOCH), path)
    try:
        state = fit(state, STEPS, batches, evaluate, validate, log=log, **options, **outputs)
    finally:
        checkpoints.close()
    return jax.device_get(state), [(row["epoch"], row["validation_accuracy"], row["train_loss"]) for row in log.rows]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, np.nan]), min_size=1, max_size=6))
def test_the_first_epoch_with_the_highest_score_is_kept(scores):
    """This holds for one network and for several with different scores; an epoch without a score is never kept."""
    several = jax.vmap(lambda key: create_state(Linear(), OPTIMIZER, key, (4, 4, 1), best=True))(
        jax.random.split(jax.random.key(0), 2)
    )
    state, turned = INITIAL, scores[::-1]
    for epoch, (score, other) in enumerate(zip(scores, turned, strict=True), start=1):
        state = BEST(state.replace(params=jax.tree.map(lambda x, e=epoch: 0 * x + e, state.params)), score, epoch)
        pair, epochs = np.float32([score, other]), np.full(2, epoch, np.int32)
        several = BEST(several.replace(params=jax.tree.map(lambda x, e=epoch: 0 * x + e, several.params)), pair, epochs)

    def best(scores):
        return 0 if np.isnan(scores).all() else 1 + int(np.nanargmax(scores))

    assert state.best["epoch"] == best(scores)
    assert list(several.best["epoch"]) == [best(scores), best(turned)]
    if best(scores):
        assert np.unique(jax.tree.leaves(state.chosen["params"])[0]) == best(scores)
        kernels = jax.tree.leaves(several.chosen["params"])[0]
        assert np.unique(kernels[0]) == best(scores)
        assert np.unique(kernels[1]) == best(turned) or not best(turned)
    assert ended_early(several, 6, 3) == (6 - max(best(scores), best(turned)) >= 3)


def test_training_ends_after_the_patience_and_keeps_the_best(tmp_path):
    scores = [0.1, 0.5, 0.4, 0.5, 0.6]
    state, log = train(tmp_path / "early", scores, patience=2)
    assert [epoch for epoch, *_ in log] == [1, 2, 3, 4]
    assert (state.best["epoch"], state.step) == (2, 4 * EPOCH)
    whole, _ = train(tmp_path / "whole", scores[:2])
    assert_trees_all_equal(state.chosen, whole.variables)
    again, _ = train(tmp_path / "early", scores, patience=2)  # nothing is left to do
    assert_trees_all_equal(state, again)
    assert train(tmp_path / "patient", scores, patience=3)[0].best["epoch"] == 5


@pytest.mark.parametrize("stop", range(1, 4 * EPOCH, 2))
def test_a_stop_changes_neither_the_best_nor_the_end(tmp_path, stop):
    """The stop may come in an epoch or in the evaluation at its end."""
    scores = [0.1, 0.5, 0.4, 0.5, 0.6]
    whole = train(tmp_path / "whole", scores, patience=2)
    train(tmp_path / "halves", scores, patience=2, stop=stop)
    assert_trees_all_equal(train(tmp_path / "halves", scores, patience=2), whole)


@pytest.mark.parametrize("rounding", [0, 1e-3])
def test_a_kill_in_the_evaluation_loses_no_best_epoch(tmp_path, rounding):
    """The checkpoint before it holds the epoch's score, which stays if the resumed run computes another score."""
    scores = [0.1, 0.5, 0.4]
    evaluations = iter([None, KeyboardInterrupt])

    def killed():
        if (error := next(evaluations)) is not None:
            raise error

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", scores, evaluated=killed)
    resumed, log = train(tmp_path / "killed", [score + rounding for score in scores])
    whole, expected = train(tmp_path / "whole", scores)
    assert resumed.best["epoch"] == whole.best["epoch"] == 2
    assert resumed.best["score"] == whole.best["score"]
    assert_trees_all_equal(resumed.variables, whole.variables)
    assert [x[::2] for x in log] == [x[::2] for x in expected]
