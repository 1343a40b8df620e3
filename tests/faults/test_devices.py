"""Tests runs that change their number of devices or processes, and processes that die or freeze."""

import json
import shutil
import signal
import time

import pytest
from faults.subject import epochs_done, outcome, steps_saved, stop, wait_until_epoch


@pytest.mark.full
def test_device_counts(lab, record):
    """Compares 4 → 2 → 1 → 4 devices over the last 100 steps with 4 devices throughout.

    Learning rates are small over the last steps. At a rate of 0.01, Adam moves a weight by 0.01 up or down even if its
    gradient is only rounding. The losses of any two device counts then separate within a few steps.
    """
    subject, moved, still = lab.subject, lab.subject.directory / "moved", lab.subject.directory / "still"
    parts, target = [], subject.epochs - 8
    for number in (4, 2, 1):
        process = subject.start(moved, devices=number)
        wait_until_epoch(target, moved, process)
        stop(process, signal.SIGTERM)
        step, target = steps_saved(moved)[-1], epochs_done(moved) + 2
        parts.append(f"{number} to step {step}")
        if number == 4:
            shutil.copytree(moved, still)
            steps = subject.epochs * subject.steps_per_epoch - step
    losses = []
    for run in still, moved:
        subject.finish(run, devices=4)
        losses.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"])
    difference = abs(losses[0] - losses[1])
    record(
        f"devices: {', '.join(parts)}, 4 to the end",
        f"loss {losses[1]:.6f}, on 4 devices all the way {losses[0]:.6f}: {difference:.1e} apart after {steps} steps",
    )
    assert difference < 1e-4


@pytest.mark.full
def test_two_processes_then_one(lab, record):
    workdir = lab.subject.directory / "two-then-one"
    pair = lab.subject.start_two(workdir)
    wait_until_epoch(1, workdir, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    codes = [outcome(process)[0] for process in pair]
    step, recovers = steps_saved(workdir)[-1], lab.recovers(workdir)
    record(
        "SIGTERM to one of 2 processes, then 1 process",
        f"both exit {codes}, saved step {step}; then {'the' if recovers else 'not the'} state of the uninterrupted run",
    )
    assert codes == [143, 143]
    assert recovers


@pytest.mark.parametrize(
    ("fate", "number"),
    [("killed", signal.SIGKILL), pytest.param("frozen", signal.SIGSTOP, marks=pytest.mark.full)],
    ids=["killed", "frozen"],
)
def test_a_process_is_lost(lab, record, fate, number):
    """One of two processes dies or freezes; then both restart, or in the short form one process with two devices."""
    workdir = lab.subject.directory / f"pair-{fate}"
    pair = lab.subject.start_two(workdir)
    wait_until_epoch(1, workdir, pair[0])
    pair[1].send_signal(number)
    begin = time.monotonic()
    code, _ = outcome(pair[0])
    seconds = time.monotonic() - begin
    pair[1].kill()
    outcome(pair[1])
    again = [lab.subject.start(workdir)] if lab.short else lab.subject.start_two(workdir)
    codes = [outcome(process)[0] for process in again]
    recovered = not any(codes) and lab.has_recovered(workdir)
    record(
        f"one of two processes {fate}",
        f"the other ends after {seconds:.1f} s with {code} (heartbeat 10 s); restarted, they "
        f"{'resume and reach the uninterrupted state' if recovered else 'DO NOT recover'}",
    )
    assert code != 0
    assert seconds < 30
    assert recovered
