"""Tests what surrounds a run: other processes, data, settings, output and small files."""

import json
import shutil
import signal
import socket
import time

import pytest
from faults.subject import error_of, exchange, outcome, stop, wait_until_epoch, write_images

pytestmark = pytest.mark.full


def test_processes_that_differ(lab, record):
    """Refuses two processes if the second has another seed, length, recipe, batch size or other images."""
    images = write_images(lab.subject.directory / "replaced", train=60)
    one, other = (images / "train" / "dark" / f"{i}.png" for i in (0, 1))
    one.write_bytes(other.read_bytes())
    flags_of = {
        "seed": ("--seed", 1),
        "epochs": ("--epochs", 3),
        "recipe": ("--recipe", "fast"),
        "batch_size": ("--batch-size", 4),
        "data.digest": ("--data-dir", images),
    }
    named, begin = 0, time.monotonic()
    for field, flags in flags_of.items():
        pair = lab.subject.start_two(lab.subject.directory / "differing", second=flags)
        named += all(code == 2 and field in line for code, line in map(error_of, pair))
    seconds = (time.monotonic() - begin) / len(flags_of)
    record(
        "two processes with another seed, length, recipe, batch size or other images",
        f"{named} of {len(flags_of)} refused by both with the field named, after {seconds:.0f} s",
    )
    assert named == len(flags_of)


def test_changed_pixels(lab, record):
    """Flips bits in the cached decoded images, and exchanges two images between stop and resume."""
    cache = [path for path in (lab.subject.directory / ".lowcost-cache").iterdir() if path.name.startswith("folder-")]
    for path in cache:
        content = bytearray(path.read_bytes())
        for place in lab.rng.sample(range(200, len(content)), 20):
            content[place] ^= 0x80
        path.write_bytes(content)
    recovers = lab.recovers(lab.subject.directory / "flipped-cache")
    half, image_folder = lab.subject.directory / "half-exchanged", lab.subject.directory / "exchanging"
    shutil.copytree(lab.subject.image_folder, image_folder)
    process = lab.subject.start(half, "--data-dir", image_folder)
    wait_until_epoch(1, half, process)
    stop(process, signal.SIGTERM)
    exchange(*(image_folder / "train" / "dark" / f"{i}.png" for i in (0, 1)))
    code, line = error_of(lab.subject.start(half, "--data-dir", image_folder))
    refused = code == 2 and "data.digest is " in line
    record(
        "bits flipped in decoded images; images exchanged between stop and resume",
        f"{len(cache)} file{'s' * (len(cache) > 1)} decoded again, {'the' if recovers else 'NOT the'} uninterrupted "
        f"state; the exchange is {'refused' if refused else 'NOT refused'}",
    )
    assert cache
    assert recovers
    assert refused


def test_ambient_settings(lab, record):
    """Sets another random generator, random bits or number format for a resume and for `evaluate`."""
    settings = {
        "jax_threefry_partitionable": {"JAX_THREEFRY_PARTITIONABLE": "0"},
        "jax_enable_x64": {"JAX_ENABLE_X64": "1"},
        "jax_default_prng_impl": {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    }
    refused, evaluated = 0, set()
    for field, environment in settings.items():
        code, line = error_of(lab.subject.start(lab.whole, environment=environment))
        refused += code == 2 and f"settings.{field} is " in line
        code, output = outcome(lab.subject.start_program("evaluate", "--workdir", lab.whole, environment=environment))
        evaluated.add(next(line for line in output.splitlines() if line.startswith("seed ")) if code == 0 else output)
    accuracy = json.loads((lab.whole / "result.json").read_text())["test_accuracy"]
    equal = len(evaluated) == 1 and f"accuracy {accuracy:.2%}" in evaluated.pop()
    record(
        "other settings of JAX in the environment",
        f"{refused} of {len(settings)} refused on resume with the setting named; evaluated with them, the accuracy is "
        f"{'the same' if equal else 'NOT the same'}",
    )
    assert refused == len(settings)
    assert equal


def test_lost_output(lab, record):
    """Training continues if the reader of its output ends, and if its output goes to a full disk or closed streams."""
    shells = {
        "to a reader that leaves": 'set -o pipefail; "$@" 2>&1 | head -n 1',
        "to a full disk": '"$@" > /dev/full 2>&1',
        "to closed streams": '"$@" >&- 2>&-',
    }
    trained = 0
    for name, script in shells.items():
        workdir = lab.subject.directory / name
        code, _ = outcome(lab.subject.start(workdir, wrap=("bash", "-c", script, "bash")))
        trained += code == 0 and lab.has_recovered(workdir)
    record(
        f"output that goes away: {', '.join(shells)}",
        f"{trained} of {len(shells)} trained to the uninterrupted state and ended with 0",
    )
    assert trained == len(shells)


def test_programs_of_other_users(lab, record):
    """Forged compiled programs in a folder to which everybody can write are not used."""
    folder, home = lab.subject.directory / "open" / ".lowcost-cache" / "compiled", lab.subject.directory / "home"
    folder.mkdir(parents=True)
    home.mkdir(mode=0o700)
    for entry in (lab.subject.directory / "compiled").glob("*-cache"):
        (folder / entry.name).write_bytes(b"forged")
    before = sorted(folder.iterdir())
    folder.chmod(0o777)
    environment = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(home)}
    workdir = folder.parents[1] / "run"
    code, output = outcome(lab.subject.start(workdir, environment=environment))
    recovered = code == 0 and lab.has_recovered(workdir)
    lines = [line for line in output.splitlines() if "warning: " in line or "cache" in line.lower()]
    untouched = sorted(folder.iterdir()) == before and all(path.read_bytes() == b"forged" for path in before)
    record(
        "forged compiled programs in a folder to which others can write",
        f"{len(before)} forged, {len(lines)} line of warning, none {'read' if untouched else 'READ or written'}; "
        f"{'the' if recovered else 'NOT the'} uninterrupted state",
    )
    assert before
    assert recovered
    assert untouched
    assert len(lines) == 1


def test_damaged_small_files(lab, record):
    """One line reports a bit flipped in metrics.jsonl, an empty result.json, or a configuration of wrong types."""
    metrics, result, types = (lab.copy(name) for name in ("metrics", "result-empty", "types"))
    content = bytearray((metrics / "metrics.jsonl").read_bytes())
    content[3] ^= 0x80
    (metrics / "metrics.jsonl").write_bytes(content)
    code, output = outcome(lab.subject.start(metrics))
    named = [code == 0 and "warning: line 1 of " in output and "Traceback" not in output]
    (result / "result.json").write_bytes(b"")
    config = types / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 8', '"batch_size": "8"'))
    for workdir, word in (result, "result.json"), (types, "batch_size"):
        for program in ("export", "--out", workdir / "net.onnx"), ("evaluate",):
            code, line = error_of(lab.subject.start_program(*program, "--workdir", workdir))
            named.append(code == 2 and word in line)
    record(
        "metrics.jsonl with a flipped bit, an empty result.json, config.json of wrong types",
        f"{sum(named)} of {len(named)} starts reported it in one line that names the file or field",
    )
    assert all(named)


def test_processes_that_do_not_come(lab, record):
    """A bad address, a port in use, a missing process or a missing backend ends with one line and status 2."""
    refused, longest = 0, 0.0
    with socket.create_server(("localhost", 0)) as taken, socket.socket() as free:
        free.bind(("localhost", 0))
        free_port, taken_port = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        both = ("--cluster.num-processes", 2, "--cluster.wait-seconds", 5)
        first, second = ((*both, "--cluster.process-id", i, "--cluster.coordinator") for i in (0, 1))
        addresses = "localhost", "localhost:99999", "no.such.host.invalid:4000", f"localhost:{taken_port}"
        attempts = [((*first, address), {}) for address in (*addresses, f"localhost:{free_port}")]
        attempts += [((*second, f"localhost:{free_port}"), {}), ((), {"JAX_PLATFORMS": "cuda"})]
        for i, (flags, environment) in enumerate(attempts):
            begin, workdir = time.monotonic(), lab.subject.directory / f"nobody-{i}"
            code, _ = error_of(lab.subject.start(workdir, *flags, environment=environment))
            longest = max(longest, time.monotonic() - begin)
            refused += code == 2
    record(
        "bad addresses, a port in use, processes that never start, a missing backend",
        f"{refused} of {len(attempts)} ended with 2 and one line, after {longest:.0f} s at most (waiting 5 s)",
    )
    assert refused == len(attempts)
    assert longest < 30
