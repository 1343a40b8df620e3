"""Tests damaged checkpoints, disks that cannot be written, and batches that are not finite."""

import shutil
import signal
from collections import Counter

import jax
import numpy as np
import pytest
from faults.subject import contents, error_of, outcome, steps_saved, stop, wait_until_epoch

from experiments.common import runs
from experiments.common.workdir import read
from lowcost.deploy.loading import identity
from lowcost.train.checkpoint import Checkpoints, digest


def prepared(workdir):
    config, recipe, _ = read(workdir)
    return runs.prepare(config, recipe)


@pytest.fixture(scope="module")
def restored(lab):
    """Returns directory of checkpoints → step and digest of the state from which training would resume."""
    run, state = identity(lab.whole), prepared(lab.whole).abstract_state()

    def restore(directory):
        checkpoints = Checkpoints(directory, run=run)
        restored = checkpoints.restore_newest(state)
        checkpoints.close()
        return (restored.step, digest(restored.state)) if restored else (0, "")

    return restore


@pytest.fixture(scope="module")
def right(lab, restored):
    """Returns step → digest of the two checkpoints of the uninterrupted run."""
    source, alone = lab.whole / "checkpoints", lab.subject.directory / "older"
    older = str(steps_saved(lab.whole)[0])
    shutil.copytree(source / older, alone / older)
    return dict(map(restored, (alone, source)))


def flip(content, rng):
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("one bit flipped in", flip),
        ("truncated at 0 %:", lambda content, rng: b""),
        ("truncated at 50 %:", lambda content, rng: content[: len(content) // 2]),
        ("truncated at 99 %:", lambda content, rng: content[: len(content) * 99 // 100]),
        ("deleted:", None),
    ],
)
def test_damaged_files(lab, record, restored, right, name, damage):
    """Damages every file of the newest checkpoint, one at a time, and restores as training does."""
    source, directory = lab.whole / "checkpoints", lab.subject.directory / "damaged"
    older, newest = steps_saved(lab.whole)
    counts = Counter()
    for file in sorted(path.relative_to(source) for path in (source / str(newest)).rglob("*") if path.is_file()):
        content = (source / file).read_bytes()
        if damage and not content:
            continue  # an empty file has nothing to flip or truncate
        shutil.copytree(source, directory)
        (directory / file).unlink()
        if damage:
            (directory / file).write_bytes(damage(content, lab.rng))
        step, value = restored(directory)
        counts["wrong" if right[step] != value else "older" if step == older else "unnoticed"] += 1
        shutil.rmtree(directory)
    record(
        f"{name} every file of the newest checkpoint",
        f"{counts.total()} damages: wrong values accepted {counts['wrong']}, not noticed {counts['unnoticed']}, "
        f"fell back to the older step {counts['older']}",
    )
    assert counts["older"] == counts.total() > 0


def test_all_checkpoints_damaged(lab, record):
    workdir = lab.copy("all-damaged")
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    code, message = error_of(lab.subject.start(workdir))
    kept = len(list((workdir / "checkpoints").glob("damaged-*")))
    record("all checkpoints damaged", f"exit {code}, one line, {kept} of 2 set aside and kept")
    assert (code, kept) == (2, 2)
    assert "damaged" in message


@pytest.fixture(scope="module")
def half(lab):
    """Returns the work directory of a run that was stopped."""
    workdir = lab.subject.directory / "half"
    process = lab.subject.start(workdir)
    wait_until_epoch(2, workdir, process)
    stop(process, signal.SIGTERM)
    return workdir


@pytest.mark.parametrize(
    ("name", "hinder", "free"),
    [
        ("work directory read-only", 'mount -o remount,ro "$DISK"', ":"),
        # The checkpoints on the full disk fit, and the next one does not.
        (
            "disk full while saving",
            'head -c $((64 << 20)) /dev/zero 2>&1 > "$DISK/f" | cat > /dev/null',
            'rm "$DISK/f"',
        ),
    ],
    ids=["read-only", "full"],
)
def test_hostile_disks(lab, record, half, name, hinder, free):
    """Resumes a stopped run on a small disk of its own, which only this process sees."""
    disk, after = (lab.subject.directory / f"{name}-{part}" for part in ("disk", "after"))
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size=64m none "$DISK" && cp -r "{half}/." "$DISK" || exit 77; {hinder}; '
        f'"$@"; code=$?; {free}; cp -r "$DISK" "{after}"; exit $code'
    )
    wrap = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    try:
        code, output = outcome(lab.subject.start(disk, wrap=wrap, environment={"DISK": str(disk)}))
    except FileNotFoundError:
        code, output = 77, ""
    if code == 77 or "unshare:" in output:
        record(name, "not tried: this system lets nobody mount a disk")
        pytest.skip("needs unshare and the right to mount")
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    saved = {path: content for path, content in contents(half).items() if path.startswith("checkpoints")}
    intact = saved.items() <= contents(after).items()
    record(name, f"exit {code}, {len(errors)} line of error, earlier steps {'intact' if intact else 'HARMED'}")
    assert (code, len(errors)) == (2, 1)
    assert "Traceback" not in output
    assert intact
    assert lab.short or lab.recovers(after)


@pytest.mark.full
def test_bad_batches(lab, record):
    """Puts NaN and Inf into some batches and compares with a run that leaves these out but counts their steps."""
    ready, steps = prepared(lab.whole), 40
    within = [step for step in range(steps) if step % ready.steps_per_epoch]  # an epoch's first step resets its sums
    bad = set(lab.rng.sample(within, steps // 4))
    seen, spared = ready.initial_state(), ready.initial_state()
    for step in range(steps):
        rows = ready.indices(step).astype(np.int32)
        images = ready.dataset.train.images[rows] / np.float32(255)
        batch = [x[None] for x in (images, ready.dataset.train.labels[rows], rows)]
        if step in bad:
            spared = jax.block_until_ready(spared.replace(step=spared.step + 1))
            batch[0][0, 0, 0, 0, 0] = lab.rng.choice([np.nan, np.inf, -np.inf])
        else:
            spared = jax.block_until_ready(ready.train_steps(spared, np.int32(1), *batch))
        seen = jax.block_until_ready(ready.train_steps(seen, np.int32(1), *batch))
    skipped = int(np.asarray(seen.skipped))
    counters = {"skipped": spared.skipped, "skipped_in_a_row": spared.skipped_in_a_row}
    equal = digest(seen.replace(**counters)) == digest(spared)
    record(
        f"NaN and Inf in {len(bad)} of {steps} batches",
        f"skipped {skipped}, state {'equal' if equal else 'not equal'} to a run that never saw them, bit for bit",
    )
    assert skipped == len(bad)
    assert equal
