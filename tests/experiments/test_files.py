"""Files are whole whatever happens, and only regular files are replaced."""

import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from experiments.common.files import read_rows, write_rows, write_whole
from lowcost import disk

ROOT = Path(__file__).parents[2]
RECORD = """
import sys
from pathlib import Path
from experiments import table2
config = table2.Config(out=Path(sys.argv[1]))
names = ("recipe", "epochs", "seeds", "device", "architecture", "width", "train_images", "seeds")
for seed in range(int(sys.argv[2]), 1000, 40):
    run = {name: name for name in names} | {"dataset": "digits", "seed": seed, "digest": str(seed)}
    table2.record(config, run)
"""


def test_links_stay_and_their_targets_are_replaced(tmp_path):
    """Chains of links stay too, and a missing target is created."""
    for folder in ("links", "files"):
        (tmp_path / folder).mkdir()
    target, link = tmp_path / "files" / "target", tmp_path / "links" / "link"
    link.symlink_to("../files/target")
    chain = tmp_path / "chain"
    chain.symlink_to(link)
    for content in (b"new", b"replaced"):
        write_whole(chain, content)
        assert chain.is_symlink()
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"target"}
    assert {path.name for path in (tmp_path / "links").iterdir()} == {"link"}


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".out.part").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "out", b"new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "out").read_text() == "new"
    assert not (tmp_path / "out").is_symlink()


def test_the_mode_stays_and_a_new_file_has_that_of_the_umask(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o604)
    before = os.umask(0o027)
    try:
        for name in ("old", "new"):
            write_whole(tmp_path / name, b"content")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("old", "new")] == [0o604, 0o640]


def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "full", b"content")


def test_standard_output_keeps_what_was_printed(tmp_path):
    """Like /dev/stdout, the link leads to the file that the shell opened, whose position the prints share."""
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")
    code = "from experiments.common.files import write_whole; from pathlib import Path; import sys; print('before');"
    code += "write_whole(Path(sys.argv[1]), b'content\\n'); print('after')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code, link], cwd=ROOT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ncontent\nafter\n"


def test_rows_hold_any_text(tmp_path):
    """Separators of lines, and bytes of a file name that are not UTF-8, are read back."""
    rows = [{"images": "a\u2028b\x85c \udce9"}, {"images": "d"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_two_programs_at_once_lose_no_rows(tmp_path):
    out = tmp_path / "results" / "table2.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", RECORD, str(out), str(first)], cwd=ROOT) for first in (0, 1, 2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(int(row["digest"]) for row in read_rows(out)) == sorted(
        seed for first in (0, 1, 2) for seed in range(first, 1000, 40)
    )


def test_a_file_is_not_touched_before_the_new_one_is_whole(tmp_path, monkeypatch):
    """If the disk is full, the old content stays and no other file remains."""

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.replace(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    for file, error in (tmp_path / "missing" / "file", FileNotFoundError), (tmp_path, IsADirectoryError):
        with pytest.raises(error, match=re.escape(f"'{file}'")):
            disk.replace(file, b"new")
