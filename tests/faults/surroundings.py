"""What surrounds a run and may be wrong: rows of `faults.faults` on processes, data, settings and files."""

import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from faults.subject import (
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
    half, pictures = lab.subject.directory / "half-pictures", lab.subject.directory / "exchanging"
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
        f"{len(cache)} file{'s' * (len(cache) > 1)} decoded again, {'the' if whole else 'NOT the'} undisturbed state; "
        f"the exchange is {'refused' if refused else 'NOT refused'}",
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
        "to a reader that leaves": 'set -o pipefail; "$@" 2>&1 | head -n 1',
        "to a full disk": '"$@" > /dev/full 2>&1',
        "to closed streams": '"$@" >&- 2>&-',
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


def programs_of_others(lab: Laboratory) -> Iterator[Row]:
    """Compiled programs beside the work directory, in a folder to which everybody can write."""
    theirs, home = lab.subject.directory / "open" / ".lowcost-cache" / "compiled", lab.subject.directory / "home"
    theirs.mkdir(parents=True)
    home.mkdir(mode=0o700)
    for entry in (lab.subject.directory / "compiled").glob("*-cache"):
        (theirs / entry.name).write_bytes(b"forged")
    before = sorted(theirs.iterdir())
    theirs.chmod(0o777)
    environment = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(home)}
    workdir = theirs.parents[1] / "run"
    code, output = outcome(lab.subject.start(workdir, environment=environment))
    whole = code == 0 and json.loads((workdir / "result.json").read_text())["digest"] == lab.digest
    lines = [line for line in output.splitlines() if "warning: " in line or "cache" in line.lower()]
    untouched = sorted(theirs.iterdir()) == before and all(path.read_bytes() == b"forged" for path in before)
    yield Row(
        "forged compiled programs in a folder to which others can write",
        f"{len(before)} forged, {len(lines)} line of warning, none {'read' if untouched else 'READ or written'}; "
        f"{'the' if whole else 'NOT the'} undisturbed state",
        whole and untouched and len(lines) == 1 and len(before) > 0,
    )


def damaged_small_files(lab: Laboratory) -> Iterator[Row]:
    """A bit flipped in metrics.jsonl; an empty result.json; a configuration of wrong types."""
    metrics, result, types = (lab.copy(name) for name in ("metrics", "result", "types"))
    content = bytearray((metrics / "metrics.jsonl").read_bytes())
    content[3] ^= 0x80
    (metrics / "metrics.jsonl").write_bytes(content)
    code, output = outcome(lab.subject.start(metrics))
    named = [code == 0 and "warning: line 1 of " in output and "Traceback" not in output]
    (result / "result.json").write_bytes(b"")
    (types / "config.json").write_text(
        (types / "config.json").read_text().replace('"batch_size": 8', '"batch_size": "8"')
    )
    for workdir, word in (result, "result.json"), (types, "batch_size"):
        for program in ("export", "--out", workdir / "net.onnx"), ("evaluate",):
            code, line = error_of(lab.subject.start_program(*program, "--workdir", workdir))
            named.append(code == 2 and word in line)
    yield Row(
        "metrics.jsonl with a flipped bit, an empty result.json, config.json of wrong types",
        f"{sum(named)} of {len(named)} starts reported it in one line that names the file or field",
        all(named),
    )


def processes_that_do_not_come(lab: Laboratory) -> Iterator[Row]:
    """A bad address, a port in use, a missing backend, a second process that never starts."""
    with socket.create_server(("localhost", 0)) as taken, socket.socket() as free:
        free.bind(("localhost", 0))
        free_port, taken_port = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        both = ("--cluster.num-processes", 2, "--cluster.wait-seconds", 5)
        first, second = ((*both, "--cluster.process-id", i, "--cluster.coordinator") for i in (0, 1))
        attempts: list[tuple[tuple[Any, ...], dict[str, str]]] = [
            *(((*first, address), {}) for address in ("localhost", "localhost:99999", "no.such.host.invalid:4000")),
            *(((*order, f"localhost:{port}"), {}) for order, port in ((first, taken_port), (first, free_port))),
            ((*second, f"localhost:{free_port}"), {}),
            ((), {"JAX_PLATFORMS": "cuda"}),
        ]
        refused, longest = 0, 0.0
        for i, (flags, environment) in enumerate(attempts):
            begin = time.monotonic()
            code, _ = error_of(
                lab.subject.start(lab.subject.directory / f"nobody-{i}", *flags, environment=environment)
            )
            longest = max(longest, time.monotonic() - begin)
            refused += code == 2
    yield Row(
        "bad addresses, a port in use, processes that never start, a missing backend",
        f"{refused} of {len(attempts)} ended with 2 and one line, after {longest:.0f} s at most (waiting 5 s)",
        refused == len(attempts) and longest < 30,
    )


FAULTS = (
    processes_that_differ,
    changed_pixels,
    ambient_settings,
    lost_output,
    programs_of_others,
    damaged_small_files,
    processes_that_do_not_come,
)
