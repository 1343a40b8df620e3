"""Tests work directories and compiled programs that do not fit the run that finds them."""

import pytest
from faults.subject import contents, error_of, outcome, wait_until_epoch, write_images


@pytest.mark.full
def test_other_configurations(lab, record):
    """Refuses another network, image size or number of classes in the same work directory."""
    three = write_images(lab.subject.directory / "three", names=("dark", "grey", "light"))
    small = write_images(lab.subject.directory / "small", size=24)
    before = contents(lab.whole)
    flags_of = {
        "width": ("--width", "B"),
        "data.image_shape": ("--data-dir", small),
        "data.classes": ("--data-dir", three),
        "seeds": ("--seeds", 2),
    }
    named = 0
    for field, flags in flags_of.items():
        code, message = error_of(lab.subject.start(lab.whole, *flags))
        named += code == 2 and f"{field} is " in message
    untouched = contents(lab.whole) | {"lock": b""} == before | {"lock": b""}
    record(
        "another configuration, image size, class count",
        f"{named} of {len(flags_of)} refused with the field named, {'nothing' if untouched else 'SOMETHING'} touched",
    )
    assert named == len(flags_of)
    assert untouched


def test_two_runs(lab, record):
    """Refuses a second run in a directory where one is training."""
    workdir = lab.subject.directory / "shared"
    flags = ("--epochs", 1000) if lab.short else ()  # the first is still training when the second starts
    first = lab.subject.start(workdir, *flags)
    wait_until_epoch(1, workdir, first)
    code, message = error_of(lab.subject.start(workdir, *flags))
    lives = first.poll() is None
    first.kill()
    outcome(first)
    record(
        "two runs on one directory",
        f"the second exits {code}: {'in use' if 'in use' in message else message}; the first "
        f"{'continues' if lives else 'HAS ENDED'}",
    )
    assert code == 2
    assert "in use" in message
    assert lives
    assert lab.short or lab.recovers(workdir)


@pytest.mark.full
def test_damaged_programs(lab, record):
    """Flips a bit in each compiled program that is kept between runs."""
    cache = lab.subject.directory / "compiled"
    files = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1 << 3
        path.write_bytes(content)
    recovers = lab.recovers(lab.subject.directory / "recompiled")
    record(
        "a bit flipped in every compiled program",
        f"{len(files)} damaged; {'the' if recovers else 'not the'} state of the uninterrupted run",
    )
    assert files
    assert recovers
