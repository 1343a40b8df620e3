"""Tests what a streak of skipped steps leaves: the checkpoints from before it, a true log, and the right error."""

import json
import time

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal
from rich.console import Console

from lowcost.train import loop
from lowcost.train.checkpoint import Checkpoints
from lowcost.train.interruption import Interruption
from lowcost.train.loop import fit
from lowcost.train.metrics_log import MetricsLog, repaired_rows
from lowcost.train.progress import DISPATCH_SECONDS, Rate
from lowcost.train.state import create_state
from lowcost.train.step import make_train_step, repeat

EPOCH = 3  # steps
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.random((12, 8, 4, 4, 1), np.float32), RNG.integers(0, 3, (12, 8)).astype(np.int32)


class Linear(nn.Module):
    """Computes logits that are linear in the pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(3)(images.reshape(len(images), -1))


class StopAt(Interruption):
    """Requests a stop while the given step is computed."""

    def __init__(self, step=99):
        self.now, self._step = 0, step

    def stop_requested(self):
        return self.now >= self._step


OPTIMIZER = optax.adam(1e-2)
STEPS = jax.jit(repeat(make_train_step(Linear(), OPTIMIZER, lambda images, draw: images, EPOCH)))
ONE_EPOCH = {"epochs": 1, "steps_per_epoch": 12, "steps_max": 2}
INITIAL = jax.jit(create_state, static_argnums=(0, 1, 3))(Linear(), OPTIMIZER, jax.random.key(0), (4, 4, 1))


def train(workdir, bad, epochs=4, stop=99, steps_per_epoch=EPOCH, steps_max=1, seconds=0.0):
    """Returns the state after training from the newest checkpoint on; the batches in `bad` hold NaN."""
    workdir.mkdir(exist_ok=True)
    interruption, checkpoints = StopAt(stop), Checkpoints(workdir / "checkpoints", keep=2)

    def batches(step, n, following):
        steps = [min(step + i, 11) for i in range(steps_max)]
        interruption.now = step + n - 1
        images = [IMAGES[i] * np.nan if i in bad else IMAGES[i] for i in steps]
        return [np.stack(images), LABELS[steps], np.stack([np.arange(8, dtype=np.int32)] * steps_max)]

    def evaluate(state):
        return None if interruption.stop_requested() else {"loss": np.float32(np.inf), "accuracy": np.float32(0.5)}

    step, state, *_ = checkpoints.restore_newest(INITIAL) or (0, INITIAL)
    metrics = workdir / "metrics.jsonl"
    with (workdir / "output").open("a") as output:
        try:
            return fit(
                state,
                STEPS,
                batches,
                evaluate,
                steps_per_epoch=steps_per_epoch,
                epochs=epochs,
                steps_max=steps_max,
                log=MetricsLog(repaired_rows(metrics, step // steps_per_epoch), metrics),
                checkpoints=checkpoints,
                interruption=interruption,
                console=Console(file=output, width=200),
                seconds=seconds,
            )
        finally:
            checkpoints.close()


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def log(workdir):
    """Returns the rows of metrics.jsonl without times, which must be valid JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k and "share" not in k} for row in rows]


@pytest.mark.parametrize(
    ("bad", "epochs", "before"), [(range(9), 3, []), (range(6, 12), 4, [3, 6]), (range(7, 12), 4, [3, 6])], ids=str
)
def test_a_last_epoch_without_a_finite_step_is_a_failure(tmp_path, bad, epochs, before):
    """A streak over epoch ends keeps the checkpoints from before it, and the log stays valid JSON."""
    with pytest.raises(
        FloatingPointError, match=f"step {bad.stop}: .* got other values in the last {len(bad)} steps; check"
    ):
        train(tmp_path, bad, epochs)
    assert saved(tmp_path) == before
    rows = log(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, epochs))
    if 3 * (epochs - 1) - bad.start >= 3:  # this epoch has no finite step either
        assert (rows[-1]["train_loss"], rows[-1]["train_accuracy"], rows[-1]["test_loss"]) == (None, None, None)
    assert [row["skipped"] for row in rows] == [len([x for x in bad if x < 3 * row["epoch"]]) for row in rows]
    last = (tmp_path / "output").read_text().splitlines()[-1]
    assert f"{len(bad) - 3} steps skipped" in last
    with pytest.raises(FloatingPointError):  # the same command fails again
        train(tmp_path, bad, epochs)
    assert saved(tmp_path) == before


def test_a_few_skipped_steps_are_reported_and_the_run_ends_well(tmp_path):
    """An epoch end within a streak saves no checkpoint; the last state is saved although its last step was skipped."""
    state = train(tmp_path, {2, 11})
    assert (int(state.step), int(state.skipped)) == (12, 2)
    assert saved(tmp_path) == [9, 12]
    lines = [x for x in (tmp_path / "output").read_text().splitlines() if x.startswith("epoch")]
    assert ["skipped" in line for line in lines] == [True] * 4
    assert "1 step skipped" in lines[0]
    train(tmp_path / "clean", ())
    assert "skipped" not in (tmp_path / "clean" / "output").read_text()


@pytest.mark.parametrize(("stop", "left"), [(4, [3]), (6, [3, 8]), (7, [3, 8]), (8, [8, 9])])
def test_a_signal_within_a_streak_loses_nothing(tmp_path, stop, left):
    """The run stops after the streak, or at an epoch end within it, and resumes to the same bits and rows."""
    whole = train(tmp_path / "whole", {4, 5, 6})
    train(tmp_path / "halves", {4, 5, 6}, stop=stop)
    assert saved(tmp_path / "halves") == left
    assert_trees_all_equal(train(tmp_path / "halves", {4, 5, 6}), whole)
    assert log(tmp_path / "halves") == log(tmp_path / "whole")


def test_streaks_that_end_and_begin_within_a_dispatch_do_not_hold_up_a_signal(tmp_path):
    """Every second step is skipped, the last of each dispatch: within a streak the steps come one by one."""
    train(tmp_path, {3, 5, 7, 9}, stop=2, **ONE_EPOCH)
    assert saved(tmp_path) == [5]


@pytest.mark.parametrize(("seconds", "within"), [(-1, True), (300, False)])
def test_a_long_epoch_is_saved_within(tmp_path, monkeypatch, seconds, within):
    """A checkpoint is saved whenever this time has passed since the last one."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    train(tmp_path, (), **ONE_EPOCH)
    assert any(0 < step < 12 for step in saved(tmp_path)) == within


def test_speeds_leave_out_the_compilation(monkeypatch):
    """The first dispatch is not measured; the second decides how many steps take half a second."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = Rate(steps_max=64)

    def steps(seconds):
        def train_steps(state, n, *batch):
            now[0] += seconds
            return state

        return train_steps

    batch = [np.zeros((4, 8, 3)), np.zeros((4, 8), np.int32)]
    rate.timed(steps(100.0), 0, 1, batch)
    now[0] += 0.25
    assert rate.speed() == {"images_per_second": None, "share_in_steps": None}
    rate.timed(steps(0.25), 0, 2, batch)
    assert rate.dispatch == np.ceil(DISPATCH_SECONDS * 2 / 0.25)
    assert rate.speed() == {"images_per_second": 2 * 8 / 0.5, "share_in_steps": 0.5}
    assert rate.seconds_per_step() == 0.125


def test_the_time_of_a_run_includes_that_before_it_stopped(tmp_path):
    train(tmp_path, (), **ONE_EPOCH, seconds=1000.0)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert 1000 < row["seconds"] < 1300
