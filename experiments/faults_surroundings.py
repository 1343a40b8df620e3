"""What surrounds a run and may be wrong: rows of `experiments.faults` on processes, data, settings and files."""

import json
import shutil
import signal
import time
from collections.abc import Iterator

from experiments.subject import (
    Laboratory,
    Row,
    error_of,
    outcome,
    stop,
    wait_until_epoch,
    write_pictures,
)


def processes_that_differ(lab: Laboratory) -> Iterator[Row]:
    """Two processes of which the second has another seed, length, recipe, batch size or other images."""
    images = write_pictures(lab.subject.directory / "exchanged", train=60)
    one, other = (images / "train" / "dark" / f"{i}.png" for i in (0, 1))
    one.write_bytes(other.read_bytes())
    asked = {
        "seed": ("--seed", 1),
        "epochs": ("--epochs", 3),
        "recipe": ("--recipe", "fast"),
        "batch_size": ("--batch-size", 4),
        "data.digest": ("--data-dir", images),
    }
    named, begin = 0, time.monotonic()
    for field, flags in asked.items():
        pair = lab.subject.start_two(lab.subject.directory / "differing", second=flags)
        named += all(code == 2 and field in line for code, line in map(error_of, pair))
    seconds = (time.monotonic() - begin) / len(asked)
    yield Row(
        "two processes with another seed, length, recipe, batch size or other images",
        f"{named} of {len(asked)} refused by both with the field named, after {seconds:.0f} s",
        named == len(asked),
    )


def changed_pixels(lab: Laboratory) -> Iterator[Row]:
    """Bits flipped in the decoded images that are kept; two images exchanged between stop and resume."""
    cache = [path for path in (lab.subject.directory / ".lowcost-cache").iterdir() if path.name.startswith("folder-")]
    for path in cache:
        content = bytearray(path.read_bytes())
        for place in lab.rng.sample(range(200, len(content)), 20):
            content[place] ^= 0x80
        path.write_bytes(content)
    whole = lab.is_whole(lab.subject.directory / "flipped-cache")
    half, pictures = lab.subject.directory / "half-pictures", lab.subject.directory / "moved"
    shutil.copytree(lab.subject.pictures, pictures)
    process = lab.subject.start(half, "--data-dir", pictures)
    wait_until_epoch(1, half, process)
    stop(process, signal.SIGTERM)
    one, other = (pictures / "train" / "dark" / f"{i}.png" for i in (0, 1))
    one.rename(pictures / "kept.png")
    other.rename(one)
    (pictures / "kept.png").rename(other)
    code, line = error_of(lab.subject.start(half, "--data-dir", pictures))
    refused = code == 2 and "data.digest is " in line
    yield Row(
        "bits flipped in decoded images; images exchanged between stop and resume",
        f"{len(cache)} files decoded again, {'the' if whole else 'NOT the'} undisturbed state; the exchange is "
        f"{'refused' if refused else 'NOT refused'}",
        whole and refused and bool(cache),
    )


def ambient_settings(lab: Laboratory) -> Iterator[Row]:
    """Another random generator, random bits or number format in the environment of a resume and of a reader."""
    settings = {
        "jax_threefry_partitionable": ("JAX_THREEFRY_PARTITIONABLE", "0"),
        "jax_enable_x64": ("JAX_ENABLE_X64", "1"),
        "jax_default_prng_impl": ("JAX_DEFAULT_PRNG_IMPL", "rbg"),
    }
    refused, evaluated = 0, set()
    for field, (name, value) in settings.items():
        code, line = error_of(lab.subject.start(lab.whole, environment={name: value}))
        refused += code == 2 and f"settings.{field} is " in line
        code, output = outcome(lab.subject.start_program("evaluate", "--workdir", lab.whole, environment={name: value}))
        evaluated.add(output.splitlines()[-1] if code == 0 else output)
    accuracy = json.loads((lab.whole / "result.json").read_text())["test_accuracy"]
    equal = len(evaluated) == 1 and f"accuracy {accuracy:.2%}" in evaluated.pop()
    yield Row(
        "other settings of JAX in the environment",
        f"{refused} of {len(settings)} refused on resume with the setting named; evaluated with them, the accuracy is "
        f"{'the same' if equal else 'NOT the same'}",
        refused == len(settings) and equal,
    )


def lost_output(lab: Laboratory) -> Iterator[Row]:
    """A reader of the output that goes away, a full disk behind it, streams that are closed."""
    shells = {
        "| head -n 1": 'set -o pipefail; "$@" 2>&1 | head -n 1',
        "> /dev/full": '"$@" > /dev/full 2>&1',
        ">&- 2>&-": '"$@" >&- 2>&-',
    }
    whole = 0
    for i, script in enumerate(shells.values()):
        workdir = lab.subject.directory / f"lost-output-{i}"
        code, _ = outcome(lab.subject.start(workdir, wrap=("bash", "-c", script, "bash")))
        whole += code == 0 and json.loads((workdir / "result.json").read_text())["digest"] == lab.digest
    yield Row(
        f"output that goes away: {', '.join(shells)}",
        f"{whole} of {len(shells)} trained to the undisturbed state and ended with 0",
        whole == len(shells),
    )


FAULTS = (processes_that_differ, changed_pixels, ambient_settings, lost_output)
