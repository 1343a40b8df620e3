"""Tests runs that are killed or stopped by signals."""

import re
import signal
import time
from functools import partial

import pytest
from faults.subject import outcome, steps_saved, stop, wait_until, wait_until_epoch


def test_kills(lab, record):
    """Kills one run again and again: half of the times at a random moment, half while it saves."""
    workdir, wanted = lab.subject.directory / "killed", 2 if lab.short else 20
    long = ("--epochs", lab.subject.epochs * (1 if lab.short else 4))  # enough for all kills
    killed, saving, resumed = 0, 0, 0
    while killed < wanted:
        moment, before = time.monotonic() + lab.rng.uniform(1, 2 if lab.short else 5), steps_saved(workdir)
        process = lab.subject.start(workdir, *long)
        if not before:
            wait_until(lambda: bool(steps_saved(workdir)), process)
        elif killed % 2:
            wait_until(partial(saves_again, workdir, before), process)
            time.sleep(lab.rng.uniform(0, 0.01))
        else:
            wait_until(partial(is_past, moment), process)
        process.kill()
        if outcome(process)[0] != -signal.SIGKILL:
            break  # the run ended before
        killed += 1
        saving += is_saving(workdir)
        damaged = list((workdir / "checkpoints").glob("damaged*"))
        resumed += steps_saved(workdir)[-1:] >= (before or [1])[-1:] and not damaged
    not_killed = lab.whole if lab.short else lab.subject.directory / "not-killed"
    digests = {lab.subject.finish(run, *long)["digest"] for run in (workdir, not_killed)}
    record(
        f"kill -9 at {wanted} random moments, during saves too",
        f"{resumed}/{killed} resumed, {saving} of them killed while saving; final state "
        f"{'equal to' if len(digests) == 1 else 'not'} the uninterrupted run's",
    )
    assert resumed == killed == wanted
    assert saving or lab.short
    assert len(digests) == 1


def is_past(moment):
    return time.monotonic() > moment


def is_saving(workdir):
    """Returns whether a checkpoint is being written, or was being written when the process was killed."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def saves_again(workdir, before):
    """Returns whether a checkpoint is being written after a first new one."""
    return steps_saved(workdir) != before and is_saving(workdir)


@pytest.mark.parametrize(
    "signals",
    [
        "SIGTERM",
        pytest.param("SIGINT", marks=pytest.mark.full),
        pytest.param("SIGTERM, SIGTERM", marks=pytest.mark.full),
        pytest.param("SIGINT, SIGINT", marks=pytest.mark.full),
        pytest.param("SIGHUP", marks=pytest.mark.full),
        pytest.param("SIGUSR1", marks=pytest.mark.full),
    ],
)
def test_signals(lab, record, signals):
    """One signal asks for a checkpoint and an exit; a second one ends the run at once."""
    numbers = [signal.Signals[name] for name in signals.split(", ")]
    workdir = lab.subject.directory / signals
    process = lab.subject.start(workdir)
    wait_until_epoch(1, workdir, process)
    code, output, seconds = stop(process, *numbers)
    reported, saved = re.findall(r"stopped at step (\d+), saved", output), steps_saved(workdir)[-1]
    step = f"stopped at step {reported[0]}, saved step {saved}, " if reported else "left at once, "
    recovers = lab.recovers(workdir)
    record(
        signals,
        f"{step}exit {code}, {seconds:.1f} s to exit; then {'the' if recovers else 'NOT the'} uninterrupted state",
    )
    assert reported == ([str(saved)] if len(numbers) == 1 else [])
    assert code == 128 + numbers[0]
    assert recovers
