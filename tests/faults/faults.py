"""What training does when something goes wrong: `python -m faults.faults` really kills, damages and fills disks.

Every row of the table is one fault. Processes are those that users start, files those that they write.
"""

import dataclasses
import json
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults import saves, surroundings
from faults.subject import (
    Laboratory,
    Row,
    Subject,
    epochs_done,
    error_of,
    is_saving,
    outcome,
    saving_anew,
    steps_saved,
    stop,
    wait_until,
    wait_until_epoch,
    write_pictures,
)

from experiments.common import entry
from experiments.common.files import write_rows


@dataclasses.dataclass(frozen=True)
class FaultsConfig:
    """Disturb small training runs in every way, and print what became of them; ends with 1 if a figure is wrong."""

    short: bool = False
    """A few of each kind, as the tests do."""
    seed: int = 0
    """Of the moments and places."""
    out: Path | None = None
    """Writes OUT.jsonl and OUT.md."""


def main(arguments: FaultsConfig) -> int:
    """Run all faults, print the table, write it."""
    from rich.console import Console
    from rich.table import Table

    rows = []
    console = Console()
    for row in disturb(arguments):
        rows.append(row)
        console.print(f"{'fine' if row.fine else 'WRONG'}: {row.fault}: {row.figure}", highlight=False)
    table = Table(title="faults", show_lines=True)
    for name in "fault", "figure":
        table.add_column(name)
    for row in rows:
        table.add_row(row.fault, row.figure if row.fine else f"WRONG: {row.figure}")
    console.print(table)
    if arguments.out is not None:
        write_rows(arguments.out.with_suffix(".jsonl"), [dataclasses.asdict(row) for row in rows])
        arguments.out.with_suffix(".md").write_text(markdown(rows))
    return int(not all(row.fine for row in rows))


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [f"| {row.fault} | {'' if row.fine else '**wrong:** '}{row.figure} |\n" for row in rows]
    return "| fault | figure |\n|---|---|\n" + "".join(lines) + "\nMade by `make faults`.\n"


def disturb(arguments: FaultsConfig) -> Iterator[Row]:
    """One row after another."""
    with tempfile.TemporaryDirectory() as directory:
        subject = Subject(Path(directory), epochs=40)
        whole = Path(directory) / "whole"
        digest = subject.finish(whole)["digest"]
        lab = Laboratory(subject, whole, digest, random.Random(arguments.seed), arguments.short)
        for fault in FAULTS:
            if arguments.short and fault in TESTED_ELSEWHERE:
                continue
            try:
                yield from fault(lab)
            except Exception as error:  # the rows of the other faults are not lost
                yield Row(fault.__name__, f"{type(error).__name__}: {error}", False)


def kills(lab: Laboratory) -> Iterator[Row]:
    """One run, killed again and again until it is through: half of the times at any moment, half while it saves."""
    workdir, wanted = lab.subject.directory / "killed", 2 if lab.short else 20
    long = ("--epochs", lab.subject.epochs * (1 if lab.short else 4))  # enough for so many kills
    killed, saving, resumed = 0, 0, 0
    while killed < wanted:
        begun, before = time.monotonic(), steps_saved(workdir)
        process = lab.subject.start(workdir, *long)
        if killed % 2:
            wait_until(partial(saving_anew, workdir, before), process)
            time.sleep(lab.rng.uniform(0, 0.01))
        else:
            moment = begun + lab.rng.uniform(1, 5)
            wait_until(partial(_is_past, moment), process)
        process.kill()
        if outcome(process)[0] != -signal.SIGKILL:
            break  # it came to its end before
        killed += 1
        saving += is_saving(workdir)
        resumed += steps_saved(workdir)[-1:] >= before[-1:] and not list((workdir / "checkpoints").glob("damaged*"))
    not_killed = lab.whole if lab.short else lab.subject.directory / "not-killed"
    ends = [lab.subject.finish(run, *long)["digest"] for run in (workdir, not_killed)]
    fine = ends[0] == ends[1]
    yield Row(
        f"kill -9 at {wanted} random moments, during saves too",
        f"{resumed}/{killed} resumed, {saving} of them killed while saving; final state "
        f"{'equal to' if fine else 'not'} the uninterrupted run's",
        fine and resumed == killed == wanted,
    )


def _is_past(moment: float) -> bool:
    return time.monotonic() > moment


def signals(lab: Laboratory) -> Iterator[Row]:
    """SIGTERM, SIGINT, each twice, SIGHUP and SIGUSR1."""
    kinds = [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)]
    kinds += [(signal.SIGHUP,), (signal.SIGUSR1,)]
    for kind in kinds[:4:3] if lab.short else kinds:
        names = ", ".join(number.name for number in kind)
        workdir = lab.subject.directory / names
        process = lab.subject.start(workdir)
        wait_until_epoch(1, workdir, process)
        code, output, seconds = stop(process, *kind)
        said = re.findall(r"stopped at step (\d+), saved", output)
        saved = steps_saved(workdir)[-1]
        step = f"stopped at step {said[0]}, saved step {saved}, " if said else "left at once, "
        clean = said == [str(saved)] if len(kind) == 1 else not said
        whole = lab.is_whole(workdir)
        yield Row(
            names,
            f"{step}exit {code}, {seconds:.1f} s to exit; then {'the' if whole else 'NOT the'} uninterrupted state",
            clean and whole and code == 128 + kind[0],
        )


def damaged_files(lab: Laboratory) -> Iterator[Row]:
    """Every file of the newest checkpoint: a bit flipped, truncated, deleted; restored as training does."""
    from experiments.common import runs
    from experiments.common.workdir import identity, read
    from lowcost.train.checkpoint import Checkpoints, digest

    run = identity(lab.whole)
    config, recipe, _ = read(lab.whole)
    ready = runs.prepare(config, recipe)
    older, newest = steps_saved(lab.whole)
    source = lab.whole / "checkpoints"

    def restored(directory: Path) -> tuple[int, str]:
        checkpoints = Checkpoints(directory, run=run)
        restored = checkpoints.restore_newest(ready.abstract_state())
        checkpoints.close()
        return (restored.step, digest(restored.state)) if restored else (0, "")

    right = {newest: restored(source)[1]}
    shutil.copytree(source / str(older), lab.subject.directory / "older" / str(older))
    right[older] = restored(lab.subject.directory / "older")[1]

    def flip(content: bytes) -> bytes:
        place = lab.rng.randrange(len(content)) if content else 0
        return content[:place] + bytes([content[place] ^ 1 << lab.rng.randrange(8)]) + content[place + 1 :]

    kinds: dict[str, Callable[[bytes], bytes | None]] = {
        "one bit flipped in": flip,
        "truncated at 0 %:": lambda content: b"",
        "truncated at 50 %:": lambda content: content[: len(content) // 2],
        "truncated at 99 %:": lambda content: content[: len(content) * 99 // 100],
        "deleted:": lambda content: None,
    }
    files = sorted(path.relative_to(source) for path in (source / str(newest)).rglob("*") if path.is_file())
    for name, damage in kinds.items():
        counts: Counter[str] = Counter()
        for file in files:
            content = (source / file).read_bytes()
            changed = damage(content) if content else None if damage(b"") is None else content
            if changed == content:
                continue
            directory = lab.subject.directory / "damaged"
            shutil.copytree(source, directory)
            (directory / file).unlink()
            if changed is not None:
                (directory / file).write_bytes(changed)
            step, value = restored(directory)
            counts["wrong" if right[step] != value else "older" if step == older else "unnoticed"] += 1
            shutil.rmtree(directory)
        yield Row(
            f"{name} every file of the newest checkpoint",
            f"{counts.total()} damages: wrong values accepted {counts['wrong']}, not noticed {counts['unnoticed']}, "
            f"fell back to the older step {counts['older']}",
            counts["older"] == counts.total() > 0,
        )


def hostile_disks(lab: Laboratory) -> Iterator[Row]:
    """All checkpoints damaged; a read-only disk; a full one."""
    workdir = lab.copy("all-damaged")
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    code, message = error_of(lab.subject.start(workdir))
    kept = len(list((workdir / "checkpoints").glob("damaged-*")))
    fine = code == 2 and "damaged" in message and kept == 2
    yield Row("all checkpoints damaged", f"exit {code}, one line, {kept} of 2 set aside and kept", fine)
    half = lab.subject.directory / "half"
    process = lab.subject.start(half)
    wait_until_epoch(2, half, process)
    stop(process, signal.SIGTERM)
    for name, kind in {"work directory read-only": "ro", "disk full while saving": "full"}.items():
        yield _on_disk(lab, half, name, kind)


def _on_disk(lab: Laboratory, half: Path, name: str, kind: str) -> Row:
    """A run that is half done goes on, on a small disk of its own that only its process sees."""
    disk, after = (lab.subject.directory / f"{kind}-{part}" for part in ("disk", "after"))
    before = _contents(half)
    disk.mkdir()
    # On the full one the checkpoints that are there fit, and the next one does not.
    script = (
        f'mount -t tmpfs -o size=64m none "{disk}" && cp -r "{half}/." "{disk}" || exit 77; '
        f'case {kind} in ro) mount -o remount,ro "{disk}" ;; *) '
        f'head -c $((64 << 20)) /dev/zero 2>&1 > "{disk}/filler" | cat > /dev/null;; esac; '
        f'"$@"; code=$?; rm -f "{disk}/filler" 2> /dev/null; cp -r "{disk}" "{after}"; exit $code'
    )
    wrap = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    try:
        process = lab.subject.start(disk, wrap=wrap)
        code, output = outcome(process)
    except FileNotFoundError:
        code, output = 77, ""
    if code == 77 or "unshare:" in output:
        return Row(name, "not tried: this system lets nobody mount a disk", True)
    message = [line for line in output.splitlines() if line.startswith("error: ")]
    there = _contents(after)
    intact = all(there.get(path) == content for path, content in before.items() if path.startswith("checkpoints"))
    return Row(
        name,
        f"exit {code}, {len(message)} line of error, earlier steps {'intact' if intact else 'HARMED'}",
        code == 2 and len(message) == 1 and "Traceback" not in output and intact and (lab.short or lab.is_whole(after)),
    )


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def bad_batches(lab: Laboratory) -> Iterator[Row]:
    """NaN and Inf in some batches; the same run without them, the step counter moved on."""
    import jax
    import numpy as np

    from experiments.common import runs
    from experiments.common.workdir import read
    from lowcost.train.checkpoint import digest

    config, recipe, _ = read(lab.whole)
    ready = runs.prepare(config, recipe)
    steps = 40
    within = [step for step in range(steps) if step % ready.steps_per_epoch]  # at its start an epoch's sums are reset
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
    yield Row(
        f"NaN and Inf in {len(bad)} of {steps} batches",
        f"skipped {skipped}, state {'equal' if equal else 'not equal'} to a run that never saw them, bit for bit",
        skipped == len(bad) and equal,
    )


def devices(lab: Laboratory) -> Iterator[Row]:
    """4 → 2 → 1 → 4 devices over the last 100 steps against 4 devices all the way; then 2 processes → 1.

    Over the last steps, where learning rates are small: at a rate of 0.01 Adam moves a weight whose gradient is nothing
    but rounding by 0.01 up or down, and the losses of any two device counts part within a few steps.
    """
    directory, subject = lab.subject.directory, lab.subject
    yield _other_device_counts(directory, subject)
    workdir = directory / "two-then-one"
    pair = subject.start_two(workdir)
    wait_until_epoch(1, workdir, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    codes = [outcome(process)[0] for process in pair]
    step, whole = steps_saved(workdir)[-1], lab.is_whole(workdir)
    yield Row(
        "SIGTERM to one of 2 processes, then 1 process",
        f"both exit {codes}, saved step {step}; then {'the' if whole else 'not the'} state of the undisturbed run",
        codes == [143, 143] and whole,
    )


def _other_device_counts(directory: Path, subject: Subject) -> Row:
    moved, still, told, target = directory / "moved", directory / "still", [], subject.epochs - 8
    for number in (4, 2, 1):
        process = subject.start(moved, devices=number)
        wait_until_epoch(target, moved, process)
        stop(process, signal.SIGTERM)
        if number == 4:
            shutil.copytree(moved, still)
            begin = steps_saved(moved)[-1]
        told.append(f"{number} to step {steps_saved(moved)[-1]}")
        target = epochs_done(moved) + 2
    losses = []
    for run in still, moved:
        subject.finish(run, devices=4)
        losses.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"])
    steps, apart = subject.epochs * subject.steps_per_epoch - begin, abs(losses[0] - losses[1])
    return Row(
        f"devices: {', '.join(told)}, 4 to the end",
        f"loss {losses[1]:.6f}, on 4 devices all the way {losses[0]:.6f}: {apart:.1e} apart after {steps} steps",
        apart < 1e-4,
    )


def a_process_killed(lab: Laboratory) -> Iterator[Row]:
    """One of two processes gone, or silent; both started again."""
    for number in [signal.SIGKILL] if lab.short else [signal.SIGKILL, signal.SIGSTOP]:
        workdir = lab.subject.directory / f"pair-{number.name}"
        pair = lab.subject.start_two(workdir)
        wait_until_epoch(1, workdir, pair[0])
        pair[1].send_signal(number)
        begin = time.monotonic()
        code, _ = outcome(pair[0])
        seconds = time.monotonic() - begin
        pair[1].kill()
        outcome(pair[1])
        if lab.short:  # as one process with two devices
            codes, whole = [0, 0], lab.is_whole(workdir)
        else:
            codes = [outcome(process)[0] for process in lab.subject.start_two(workdir)]
            whole = json.loads((workdir / "result.json").read_text())["digest"] == lab.digest
        yield Row(
            f"one of two processes {'killed' if number == signal.SIGKILL else 'frozen'}",
            f"the other ends after {seconds:.1f} s with {code} (heartbeat 10 s); restarted, they "
            f"{'go on to the undisturbed state' if whole else 'DO NOT go on'}",
            code != 0 and seconds < 30 and codes == [0, 0] and whole,
        )


def other_configurations(lab: Laboratory) -> Iterator[Row]:
    """Another network, image size, number of classes in the same work directory."""
    three = write_pictures(lab.subject.directory / "three", names=("dark", "grey", "light"))
    small = write_pictures(lab.subject.directory / "small", size=24)
    before = _contents(lab.whole)
    asked = {
        "width": ("--width", "B"),
        "data.image_shape": ("--data-dir", small),
        "data.classes": ("--data-dir", three),
        "seeds": ("--seeds", 2),
    }
    named = 0
    for field, flags in asked.items():
        code, message = error_of(lab.subject.start(lab.whole, *flags))
        named += code == 2 and f"{field} is " in message
    untouched = {k: v for k, v in _contents(lab.whole).items() if k != "lock"} == {
        k: v for k, v in before.items() if k != "lock"
    }
    yield Row(
        "another configuration, image size, class count",
        f"{named} of {len(asked)} refused with the field named, {'nothing' if untouched else 'SOMETHING'} touched",
        named == len(asked) and untouched,
    )


def two_runs(lab: Laboratory) -> Iterator[Row]:
    """A second run in a directory where one is training."""
    workdir = lab.subject.directory / "shared"
    first = lab.subject.start(workdir)
    wait_until_epoch(1, workdir, first)
    code, message = error_of(lab.subject.start(workdir))
    lives = first.poll() is None
    first.kill()
    outcome(first)
    whole = lab.short or lab.is_whole(workdir)
    yield Row(
        "two runs on one directory",
        f"the second exits {code}: {'in use' if 'in use' in message else message}; the first goes on",
        code == 2 and "in use" in message and lives and whole,
    )


def damaged_programs(lab: Laboratory) -> Iterator[Row]:
    """The compiled programs that are kept between runs: a bit flipped in each."""
    cache = lab.subject.directory / "compiled"
    files = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1 << 3
        path.write_bytes(content)
    whole = lab.is_whole(lab.subject.directory / "recompiled")
    yield Row(
        "a bit flipped in every compiled program",
        f"{len(files)} damaged; {'the' if whole else 'not the'} state of the undisturbed run",
        whole and bool(files),
    )


FAULTS = (
    kills,
    signals,
    damaged_files,
    hostile_disks,
    bad_batches,
    devices,
    a_process_killed,
    other_configurations,
    two_runs,
    damaged_programs,
    *saves.FAULTS,
    *surroundings.FAULTS,
)

TESTED_ELSEWHERE = (
    *saves.TESTED_ELSEWHERE,
    *surroundings.FAULTS,
    damaged_files,
    bad_batches,
    devices,
    other_configurations,
    damaged_programs,
)
"""What the short form leaves out; two processes and then one are in it all the same."""

if __name__ == "__main__":
    entry.run(main, FaultsConfig, long=True)
