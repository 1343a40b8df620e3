"""Tests folders of images: the required structure, and the cache that avoids decoding twice."""

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lowcost.data import decoding as decoding_module
from lowcost.data import folder, folders


def write(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


@pytest.fixture
def image_folder(tmp_path):
    """Writes images of three classes, of which "emu" has no test images; the red value identifies each file."""
    root = tmp_path / "image_folder"
    names = (
        "train/cat/b.png",
        "train/cat/a.PNG",
        "train/ant/x.jpg",
        "train/emu/y.Jpeg",
        "test/ant/p.png",
        "test/cat/q.jpg",
    )
    for i, name in enumerate(names):
        write(root / name, 40 * i)
    return root


@pytest.fixture
def no_decoding(monkeypatch):
    """Returns a function that makes all later decoding an error."""

    def decode(*_):
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(folders, "read_images", decode)


def reported(capsys):
    """Returns the lines on stderr except those on classes without test images, because `image_folder` has one."""
    return [line for line in capsys.readouterr().err.splitlines() if ": no test images of " not in line]


def reds(split):
    return [int(round(image[..., 0].mean(), -1)) for image in split.images]


def only_file(cache):
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize("cached", [False, True])
def test_classes_and_files_are_in_the_order_of_their_names(image_folder, tmp_path, cached):
    data = folder(image_folder, cache_dir=tmp_path / "cache" if cached else None)
    assert data.classes == ("ant", "cat", "emu")
    assert data.image_shape == (8, 8, 3)
    assert reds(data.train) == [80, 40, 0, 120]
    assert data.train.labels.tolist() == [0, 1, 1, 2]
    assert reds(data.test) == [160, 200]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.files == ("train/ant/x.jpg", "train/cat/a.PNG", "train/cat/b.png", "train/emu/y.Jpeg")
    assert data.test.files == ("test/ant/p.png", "test/cat/q.jpg")
    assert data.keeps == ("flip", "shift", "hide")


def test_every_suffix_is_read_and_what_is_passed_over_is_counted(image_folder, tmp_path, capsys):
    """Links are followed; one line per split counts the ignored entries by kind, if there are any."""
    for suffix in ("WebP", "bmp", "tif", "TIFF", "gif", "jfif", "jpe"):
        image = Image.new("RGB", (8, 8), (0, 0, 0))
        path = image_folder / "train" / "emu" / f"z.{suffix}"
        image.save(path, "JPEG" if suffix in ("jfif", "jpe") else None)
    folder(image_folder)
    assert reported(capsys) == []
    for name in (
        "train/.DS_Store",
        "train/cat/._a.png",
        "train/cat/notes.txt",
        "train/cat/more.TXT",
        "train/cat/noname",
        "train/cat/older/a.png",
        "train/.git/a.png",
        "train/README.png",
    ):
        (image_folder / name).parent.mkdir(exist_ok=True)
        (image_folder / name).write_text("not an image")
    os.mkfifo(pipe := image_folder / "train/cat/pipe.png")
    release = threading.Timer(5, lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))  # frees a reader
    release.start()
    write(tmp_path / "elsewhere" / "z.png", 250)
    (image_folder / "train/cat/z.png").symlink_to(tmp_path / "elsewhere" / "z.png")
    (image_folder / "train/zoo").symlink_to(tmp_path / "elsewhere")
    data = folder(image_folder)
    release.cancel()
    assert data.classes == ("ant", "cat", "emu", "zoo")
    assert reds(data.train) == [80, 40, 0, 250, 120, *[0] * 7, 250]
    (line,) = reported(capsys)
    head, kinds = line.split(" entries: ")
    assert head == f"{image_folder / 'train'}: ignored 9"
    assert sorted(kinds.split(", ")) == [
        "1 folders inside a class",
        "1 images outside a class",
        "1 pipes or devices",
        "1 without suffix",
        "2 .txt",
        "3 hidden",
    ]


def test_names_in_errors_and_reports_cannot_forge_a_line(image_folder, capsys):
    """Control characters and bytes that are not UTF-8 are escaped, and long lists are cut."""
    evil = b"\x1b[2Ja\nerror: b\xff"
    os.mkdir(os.fsencode(image_folder) + b"/train/" + evil)
    shown = "\\x1b[2Ja\\nerror: b\\udcff"

    def refused():
        with pytest.raises(ValueError, match=r"train|test") as error:
            folder(image_folder)
        assert shown in str(error.value)
        assert str(error.value).isprintable()

    refused()  # no images in it
    Image.new("RGB", (8, 8)).save(image := os.fsencode(image_folder) + b"/train/" + evil + b"/" + evil + b".png")
    assert len(folder(image_folder).classes) == 4
    with open(image, "wb") as file:
        file.write(b"no image")
    refused()
    os.rename(os.fsencode(image_folder) + b"/train/" + evil, os.fsencode(image_folder) + b"/test/" + evil)
    refused()  # no such class in train
    assert reported(capsys) == []
    with open(os.fsencode(image_folder) + b"/train/cat/a." + evil, "wb"):
        pass
    refused()
    (line,) = reported(capsys)
    assert shown.lower() in line
    assert line.isprintable()
    for i in range(100):
        (image_folder / "train" / "cat" / f"part.{i}").touch()
    refused()
    (line,) = reported(capsys)
    assert "ignored 101 entries: " in line
    assert len(line) < 400


def remove(path):
    for child in path.iterdir() if path.is_dir() and not path.is_symlink() else ():
        remove(child)
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda root: remove(root),
            FileNotFoundError,
            r"image_folder must be a folder, got none; data_dir must hold train/<class>/ and",
        ),
        (
            lambda root: (remove(root), root.write_text("")),
            NotADirectoryError,
            r"image_folder must be a folder, got another file; data_dir must hold train/",
        ),
        (
            lambda root: remove(root / "train"),
            FileNotFoundError,
            r"train must be a folder, got none; data_dir must hold train/<class>/",
        ),
        (
            lambda root: (remove(root / "test"), (root / "test").write_text("")),
            NotADirectoryError,
            r"test must be a folder, got another file; data_dir must hold train/<class>/",
        ),
        (
            lambda root: [remove(path) for path in (root / "train").iterdir()],
            ValueError,
            "train must hold a folder per class, got none",
        ),
        (
            lambda root: [remove(path) for path in (root / "test").iterdir()],
            ValueError,
            "test must hold a folder per class, got none",
        ),
        (lambda root: (root / "train/gnu").mkdir(), ValueError, r"train/gnu must hold images .* got none"),
        (lambda root: (root / "test/emu").mkdir(), ValueError, r"test/emu must hold images .* got none"),
        (lambda root: write(root / "test/gnu/a.png"), ValueError, r"test/gnu must be a class of train"),
        (
            lambda root: (root / "train/cat/c.png").write_text("text"),
            ValueError,
            r"cat/c\.png must be .*; remove or replace it$",
        ),
        (
            lambda root: (root / "train/cat/c.png").symlink_to("nowhere"),
            FileNotFoundError,
            r"cat/c\.png must exist, got",
        ),
        (
            lambda root: (root / "train/frog").symlink_to("nowhere"),
            FileNotFoundError,
            "train/frog must exist, got a brok",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_that_is_not_as_expected(image_folder, tmp_path, spoil, error, message, cached):
    spoil(image_folder)
    cache = tmp_path / "cache"
    with pytest.raises(error, match=message) as caught:
        folder(image_folder, cache_dir=cache if cached else None)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_an_image_size_below_one_pixel_is_refused(image_folder):
    with pytest.raises(ValueError, match="image_size must be at least 1 or None, got 0"):
        folder(image_folder, image_size=0)


def test_the_second_start_does_not_decode(image_folder, tmp_path, no_decoding):
    first = folder(image_folder, cache_dir=tmp_path / "cache")
    no_decoding()
    second = folder(str(image_folder), cache_dir=str(tmp_path / "cache"))
    assert isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    assert second.classes == first.classes
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(second, split).images, getattr(first, split).images)
        np.testing.assert_array_equal(getattr(second, split).labels, getattr(first, split).labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write(root / "train/cat/a.PNG", 230),
        lambda root: os.utime(root / "train/cat/a.PNG", ns=(0, 0)),
        lambda root: (root / "train/cat/a.PNG").rename(root / "train/ant/a.PNG"),
        lambda root: write(root / "test/emu/a.png", 230),
        lambda root: (root / "train/cat/b.png").unlink(),
    ],
    ids=["content", "time", "class", "added", "removed"],
)
def test_whatever_changes_is_seen(image_folder, tmp_path, change):
    folder(image_folder, cache_dir=tmp_path / "cache")
    change(image_folder)
    cached, fresh = folder(image_folder, cache_dir=tmp_path / "cache"), folder(image_folder)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(cached, split).images, getattr(fresh, split).images)
        np.testing.assert_array_equal(getattr(cached, split).labels, getattr(fresh, split).labels)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs a time of status change")
def test_images_of_equal_size_and_time_that_are_exchanged_are_seen(image_folder, tmp_path):
    one, other, aside = image_folder / "train/cat/a.PNG", image_folder / "train/cat/b.png", image_folder / "aside"
    for path in (one, other):
        path.write_bytes(path.read_bytes() + bytes(200 - path.stat().st_size))
        os.utime(path, ns=(0, 0))
    before = reds(folder(image_folder, cache_dir=tmp_path / "cache").train)
    time.sleep(0.02)  # a kernel may count time in steps of 10 ms
    one.rename(aside), other.rename(one), aside.rename(other)
    after = reds(folder(image_folder, cache_dir=tmp_path / "cache").train)
    assert after == reds(folder(image_folder).train)
    assert after != before


def test_each_image_size_has_its_own_cache(image_folder, tmp_path):
    assert folder(image_folder, cache_dir=tmp_path / "cache").image_shape == (8, 8, 3)
    assert folder(image_folder, image_size=16, cache_dir=tmp_path / "cache").image_shape == (16, 16, 3)


def flipped(whole, position):
    return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[:100],
        lambda whole: whole + b"\0",
        lambda _: b"",
        lambda _: b"text",
        lambda whole: whole.replace(b"|u1", b"|i1"),
        lambda whole: whole.replace(b"(6, 8, 8, 3)", b"(8, 6, 8, 3)"),
        lambda whole: whole.replace(b"'shape'", b"'sh\0pe'"),
        lambda whole: b"PK\x03\x04" + whole,
        lambda whole: whole.replace(b"'fortran_order': False", b"'fortran_order': True "),
        lambda whole: flipped(whole, 70),
        lambda whole: flipped(whole, 200),
        lambda whole: flipped(whole, len(whole) - 40),
        lambda whole: flipped(whole, len(whole) - 1),
        lambda whole: flipped(whole, 200)[:-32] + hashlib.sha256(flipped(whole, 200)[:-32]).digest(),
    ],
    ids=[
        *("short", "header", "long", "empty", "text", "dtype", "shape", "key", "zip", "order"),
        *("header bit", "first bit", "last bit", "digest bit", "other digest"),
    ],
)
def test_a_damaged_cache_is_made_again(image_folder, tmp_path, no_decoding, damage, capsys):
    """One line on stderr reports it."""
    cache = tmp_path / "cache"
    folder(image_folder, cache_dir=cache)
    whole = only_file(cache).read_bytes()
    assert damage(whole) != whole
    only_file(cache).write_bytes(damage(whole))
    assert reported(capsys) == []
    assert reds(folder(image_folder, cache_dir=cache).test) == [160, 200]
    assert only_file(cache).read_bytes() == whole
    (line,) = reported(capsys)
    assert line.startswith(f"warning: {only_file(cache)} cannot be used (")
    assert line.endswith("; it is replaced")
    no_decoding()
    folder(image_folder, cache_dir=cache)
    assert reported(capsys) == []


def test_the_cache_of_other_images_under_this_name_is_made_again(image_folder, tmp_path, capsys):
    """Two cache files are exchanged: each is intact and has the right shape, but holds other images."""
    folder(image_folder, cache_dir=tmp_path / "cache")
    write(image_folder / "train/cat/a.PNG", 230)
    folder(image_folder, cache_dir=tmp_path / "cache")
    one, other = (tmp_path / "cache").iterdir()
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert reds(folder(image_folder, cache_dir=tmp_path / "cache").train) == [80, 230, 0, 120]
    assert capsys.readouterr().err.count("it is replaced") == 1


def test_a_failure_leaves_no_cache_behind(image_folder, tmp_path):
    """Folders made for the cache are removed too; other files in an existing folder stay."""
    (image_folder / "train" / "cat" / "z.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"z\.png must be a readable image"):
        folder(image_folder, cache_dir=tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "other").write_text("")
    with pytest.raises(ValueError, match=r"z\.png"):
        folder(image_folder, cache_dir=tmp_path / "old")
    assert os.listdir(tmp_path / "old") == ["other"]


def test_the_first_of_two_caches_stays(image_folder, tmp_path, monkeypatch):
    """If it were replaced, processes of other hosts that have mapped it over NFS would lose it."""
    path = tmp_path / "cache"
    made, decode = [], decoding_module.read_image

    def slow(*given):
        if not made:  # another process is faster
            made.append(None)
            folder(image_folder, cache_dir=path)
            made[0] = only_file(path).stat().st_ino
        return decode(*given)

    monkeypatch.setattr(decoding_module, "read_image", slow)
    assert reds(folder(image_folder, cache_dir=path).train) == [80, 40, 0, 120]
    assert only_file(path).stat().st_ino == made[0]


def test_caches_made_at_once_do_not_meet(image_folder, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: folder(image_folder, cache_dir=tmp_path / "cache"), range(8)))
    assert all(reds(data.train) == [80, 40, 0, 120] for data in loaded)
    assert only_file(tmp_path / "cache").suffix == ".npy"


def test_a_cache_dir_that_cannot_be_written_is_named(image_folder, tmp_path, monkeypatch):
    """The error comes after one image has been decoded, which determines the size of the cache."""
    decode, decoded = decoding_module.read_image, []
    monkeypatch.setattr(decoding_module, "read_image", lambda path, *grid: decoded.append(path) or decode(path, *grid))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache_dir must be writable, got .*file \(.*; name another folder"):
        folder(image_folder, cache_dir=tmp_path / "file")
    assert len(decoded) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_dir_serves_what_it_holds(image_folder, tmp_path, no_decoding):
    cache = tmp_path / "cache"
    folder(image_folder, cache_dir=cache)
    no_decoding()
    cache.chmod(0o555)
    try:
        folder(image_folder, cache_dir=cache)
        with pytest.raises(OSError, match="must be writable"):
            folder(image_folder, image_size=16, cache_dir=cache)
    finally:
        cache.chmod(0o755)


LIMITED = """
import re, resource, sys
from lowcost.data import folder
folder("small")  # all that is imported on the way
used = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 160 * 2**20,) * 2)
data = folder("large", cache_dir=sys.argv[1] if sys.argv[1:] else None)
assert data.train.images.nbytes > 200 * 2**20
assert (data.train.images[::50] == 7).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit and count memory in other ways")
def test_a_folder_may_be_larger_than_the_memory(tmp_path):
    """Reads 211 MiB of images under a limit that allows no array of that size."""
    for name, size, count in (("small", 8, 1), ("large", 128, 4500)):
        for part in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (tmp_path / name / part).mkdir(parents=True)
            first = tmp_path / name / part / "0.png"
            Image.new("RGB", (size, size), (7, 7, 7)).save(first)
            for i in range(1, count if part == "train/cat" else 1):
                os.link(first, first.with_name(f"{i}.png"))
    run = [sys.executable, "-c", LIMITED]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    inside = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "MemoryError" in inside.stderr
    mapped = subprocess.run([*run, "cache"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert mapped.returncode == 0, mapped.stderr


def test_what_a_killed_process_left_is_removed_after_a_day(image_folder, tmp_path):
    cache = tmp_path / "cache"
    folder(image_folder, cache_dir=cache)
    path = only_file(cache)
    path.unlink()
    for name, age in ((f".{path.name}.old", 2 * 86400), (f".{path.name}.young", 0), ("other", 2 * 86400)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    folder(image_folder, cache_dir=cache)
    assert sorted(os.listdir(cache)) == sorted([path.name, f".{path.name}.young", "other"])


def write_tree(root, ids, shift=0):
    """Writes images to the folders a and b of root: the colour encodes the number, and even numbers are in a."""
    for i in ids:
        path = root / "ab"[i % 2] / f"{i}.{shift}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(path)


def numbers(split):
    return [int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in split.images]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("inside", ["", "train"])
def test_one_tree_is_split_by_the_content_of_the_files(tmp_path, cached, inside):
    write_tree(tmp_path / "tree" / inside, range(300))
    data = folder(tmp_path / "tree", test_share=0.3, cache_dir=tmp_path / "cache" if cached else None)
    below = {}
    for path in (tmp_path / "tree" / inside).glob("?/*.png"):
        start = hashlib.sha256(path.read_bytes()).digest()[:8]
        below[int(path.name.split(".")[0])] = int.from_bytes(start, "big") / 2**64 < 0.3
    assert sorted(numbers(data.test)) == sorted(i for i in below if below[i])
    assert sorted(numbers(data.train)) == sorted(i for i in below if not below[i])
    for split in (data.train, data.test):
        assert [i % 2 for i in numbers(split)] == split.labels.tolist() == sorted(split.labels)
        names = [f"{i}.0.png" for i in numbers(split)]
        assert names == sorted(names, key=lambda name: (int(name.split(".")[0]) % 2, name))
    assert abs(np.bincount(data.test.labels) - 45).max() < 5 * np.sqrt(150 * 0.3 * 0.7)
    assert data.classes == ("a", "b")
    assert data.validation is None


@settings(max_examples=15, deadline=None)
@given(
    first=st.sets(st.integers(0, 999), max_size=60).map(lambda ids: ids | set(range(1000, 1040))),
    more=st.sets(st.integers(0, 999), max_size=60),
    share=st.floats(0.3, 0.7),
)
def test_added_images_move_none_from_test_to_training_and_copies_stay_together(first, more, share):
    """Forty images are always present, so that both parts have some of each class."""
    with tempfile.TemporaryDirectory() as root:
        write_tree(Path(root), first)
        before = folder(root, test_share=share)
        write_tree(Path(root), more, shift=1)
        after = folder(root, test_share=share)
    assert sorted(numbers(after.train) + numbers(after.test)) == sorted([*first, *more])
    assert not set(numbers(after.train)) & set(numbers(after.test))
    assert set(numbers(before.test)) <= set(numbers(after.test))
    assert set(numbers(before.train)) <= set(numbers(after.train))


def test_the_second_start_reads_no_file_and_another_share_none_twice(tmp_path, monkeypatch, no_decoding):
    write_tree(tmp_path / "tree", range(60))
    load = partial(folder, tmp_path / "tree", cache_dir=tmp_path / "cache")
    first = load(test_share=0.3)
    monkeypatch.setattr(folders, "file_digests", None)
    other = load(test_share=0.5)
    assert set(numbers(first.test)) < set(numbers(other.test))
    no_decoding()
    assert numbers(load(test_share=0.3).test) == numbers(first.test)
    monkeypatch.undo()
    write_tree(tmp_path / "tree", [77], shift=1)
    assert 77 in numbers(load().train) + numbers(load().test)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("test", [True, False])
def test_a_share_must_be_inside_its_range(image_folder, share, test):
    if not test:
        remove(image_folder / "test")
    with pytest.raises(ValueError, match="test_share must be above 0 and below 1, got"):
        folder(image_folder, test_share=share)


def test_a_share_has_no_effect_on_a_folder_with_test_images(image_folder):
    assert folder(image_folder, test_share=0.9).digest == folder(image_folder).digest


def test_a_share_that_leaves_no_images_is_refused(tmp_path):
    write_tree(tmp_path, range(20))
    with pytest.raises(ValueError, match=r"test_share must leave images on both sides, got 1e-09, which takes 0 of"):
        folder(tmp_path, test_share=1e-9)
    with pytest.raises(ValueError, match=r"got 0\.9999, which takes 20 of 20; choose another share or add images"):
        folder(tmp_path, test_share=0.9999)
    for i in range(20):  # until one is below the share
        write(path := tmp_path / "c" / "0.png", i, size=(8, 16))
        if hashlib.sha256(path.read_bytes()).digest() < b"\x80":
            break
    with pytest.raises(ValueError, match=r"test_share must leave training images of c, got 0\.5; decrease it or add"):
        folder(tmp_path, test_share=0.5)


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_single_class_is_refused(tmp_path, inside):
    write_tree(tmp_path / inside, range(0, 20, 2))
    with pytest.raises(ValueError, match="must hold at least two classes, got only a; add a folder per class"):
        folder(tmp_path)


@pytest.mark.parametrize("test", [True, False])
def test_validation_images_have_a_folder_of_their_own(image_folder, tmp_path, capsys, test):
    write(image_folder / "val" / "cat" / "v.png", 240)
    if not test:
        remove(image_folder / "test")
        for name in ("ant", "cat", "emu"):
            for i in range(20):
                write(image_folder / "train" / name / f"{i}.png", i)
    for cache_dir in (None, tmp_path / "cache", tmp_path / "cache"):
        data = folder(image_folder, cache_dir=cache_dir)
        assert reds(data.validation) == [240]
        assert data.validation.labels.tolist() == [1]
        assert len(data.train) + len(data.test) == (6 if test else 64)
        lines = [line for line in capsys.readouterr().err.splitlines() if "no validation images" in line]
        assert lines == [f"warning: {image_folder}: no validation images of ant, emu"]
    write(image_folder / "val" / "gnu" / "v.png")
    with pytest.raises(ValueError, match=r"val/gnu must be a class of train too"):
        folder(image_folder)


def test_classes_without_test_images_are_named(image_folder, capsys):
    folder(image_folder)
    assert capsys.readouterr().err == f"warning: {image_folder}: no test images of emu\n"


def test_what_lies_beside_the_splits_is_counted(image_folder, capsys):
    """Class folders are counted too; files that operating systems add count as hidden at any level."""
    for name in ("gnu/a.png", "b.png", ".DS_Store", "notes.txt", "__MACOSX/a.png", "train/cat/._a.png"):
        write(image_folder / "a.png")
        (image_folder / name).parent.mkdir(exist_ok=True)
        (image_folder / "a.png").rename(image_folder / name)
    folder(image_folder)
    inside, beside = sorted(reported(capsys), key=len, reverse=True)[::-1]
    assert inside == f"{image_folder}/train: ignored 1 entries: 1 hidden"
    assert beside.startswith(f"{image_folder}: ignored 5 entries: 2 hidden, ")
    for kind in ("1 .txt", "1 folders beside train", "1 images beside train"):
        assert kind in beside


def test_what_lies_beside_the_classes_is_counted(tmp_path, capsys):
    write_tree(tmp_path, range(60))
    write(tmp_path / "b.png")
    write(tmp_path / "__MACOSX" / "a" / "0.png")
    write(tmp_path / "a" / "older" / "0.png")
    assert folder(tmp_path).classes == ("a", "b")
    expected = "1 hidden, 1 folders inside a class, 1 images outside a class"
    assert reported(capsys) == [f"{tmp_path}: ignored 3 entries: {expected}"]


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_split_without_training_images_is_refused(tmp_path, part):
    write_tree(tmp_path / part, range(8))
    with pytest.raises(FileNotFoundError, match=r"train must be a folder, got none; data_dir must hold"):
        folder(tmp_path)


def test_a_link_that_cannot_be_read_is_named_before_the_split(tmp_path):
    write_tree(tmp_path, range(60))
    (tmp_path / "a" / "z.png").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"a/z\.png must exist, got a broken link to nowhere; mount or restore"):
        folder(tmp_path)
    (tmp_path / "a" / "z.png").unlink()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a" / "z.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"a/z\.png must be a readable image .*not a regular file"):
        folder(tmp_path)


def test_copies_in_a_users_own_split_are_counted(tmp_path, capsys):
    """Equal pixels make a copy, whatever the names, classes and formats; only the start that decodes reports them."""
    for part, ids in (("train", range(8)), ("test", (1, 2, 20, 30)), ("val", (40, 50))):
        write_tree(tmp_path / "photos" / part, ids, shift=len(part))
    Image.new("RGB", (8, 8), (3, 0, 0)).save(tmp_path / "photos" / "val" / "a" / "other.bmp")
    for lines in (2, 0):
        folder(tmp_path / "photos", cache_dir=tmp_path / "cache")
        reported = [line for line in capsys.readouterr().err.splitlines() if "copies of training images" in line]
        assert len(reported) == lines
        assert not lines or "2 test images" in reported[0]
        assert not lines or "1 validation images" in reported[1]
