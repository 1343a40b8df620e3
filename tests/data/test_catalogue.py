"""The constants are those of tensorflow-datasets' catalogue; archives are looked for in the right folders."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lowcost.data.catalogue import ENTRIES, find_archive, search

CIFAR10 = ENTRIES["cifar10"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Sets an empty home directory and returns its folder for archives."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    for variable in ("LOWCOST_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "home/.cache/lowcost"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Returns data set's name → its builder in the catalogue, and forbids the network."""

    def refuse(*args, **_):
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
    return lambda name: tfds.builder(name, data_dir=tmp_path)


def test_the_data_sets():
    assert {name: entry.name for name, entry in ENTRIES.items()} == {name: name for name in ENTRIES}
    assert list(ENTRIES) == ["cifar10", "cifar100", "stl10"]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_is_that_of_the_catalogue(published, entry):
    builder = published(entry.name)
    assert list(builder.url_infos) == [entry.url]
    info = builder.url_infos[entry.url]
    assert (int(info.size), info.checksum, info.filename) == (entry.size, entry.sha256, entry.filename)
    assert builder.info.features["image"].shape == entry.image_shape
    assert builder.info.features["label"].num_classes == len(entry.classes)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_numbers_of_images_are_those_of_the_catalogue(published, name):
    """The catalogue lists splits only of prepared data sets, so the numbers are read from its descriptions."""
    description = " ".join(published(name).info.description.split())
    found = re.search(r"(\d+) training images and (\d+) test(ing)? images( per class)?", description)
    factor = len(ENTRIES[name].classes) if found[4] else 1
    assert (ENTRIES[name].train, ENTRIES[name].test) == (int(found[1]) * factor, int(found[2]) * factor)


def test_the_class_names():
    """The names, in the order of the labels, are in alphabetical order in all three data sets."""
    assert CIFAR10.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    stl10 = ENTRIES["stl10"]
    assert set(CIFAR10.classes) ^ set(stl10.classes) == {"automobile", "car", "frog", "monkey"}
    assert (stl10.train, stl10.test) == (5000, 8000)
    for entry in ENTRIES.values():
        assert entry.classes == tuple(sorted(set(entry.classes)))


def test_folders_in_order(cache, monkeypatch):
    assert search(CIFAR10) == [cache]
    monkeypatch.setenv("LOWCOST_DATA", "~/shared")
    assert search(CIFAR10) == [cache.parents[1] / "shared", cache]
    assert search(CIFAR10, "here") == [Path("here"), cache.parents[1] / "shared", cache]
    monkeypatch.setenv("LOWCOST_DATA", "")
    assert search(CIFAR10, Path("here")) == [Path("here"), cache]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg"),
        ("darwin", {"XDG_CACHE_HOME": "{}/xdg"}, "home/Library/Caches"),
    ],
)
def test_the_cache_folder_of_each_platform(cache, tmp_path, monkeypatch, platform, variables, expected):
    monkeypatch.setattr("sys.platform", platform)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(tmp_path))
    assert search(CIFAR10) == [tmp_path / expected / "lowcost"]


def test_the_first_archive_is_found(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWCOST_DATA", str(tmp_path / "shared"))
    (tmp_path / "given" / CIFAR10.filename).mkdir(parents=True)  # not a file, so passed over
    for folder in (cache, tmp_path / "shared", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / CIFAR10.filename).write_text("")
        assert find_archive(CIFAR10, tmp_path / ("other" if folder.name == "other" else "given")).parent == folder


def test_a_missing_archive_says_all_that_is_needed(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWCOST_DATA", str(tmp_path / "shared"))
    with pytest.raises(FileNotFoundError) as caught:
        find_archive(CIFAR10, tmp_path)
    message = str(caught.value)
    for part in (
        "cifar10: cifar-10-binary.tar.gz must be in ",
        os.fspath(tmp_path),
        os.fspath(tmp_path / "shared"),
        os.fspath(cache),
        f"from {CIFAR10.url} (162 MiB, sha256 {CIFAR10.sha256})",
        "--download",
        f"put it into {tmp_path};",
        "digits needs no file",
    ):
        assert part in message
    assert "\n" not in message


def test_the_archive_itself_may_be_named(tmp_path):
    path = tmp_path / CIFAR10.filename
    with pytest.raises(FileNotFoundError, match=f"put it into {tmp_path};"):
        find_archive(CIFAR10, path)
    assert search(CIFAR10, path)[0] == tmp_path  # where a download goes
    path.touch()
    assert find_archive(CIFAR10, path) == path


def test_the_pickled_archive_is_not_the_one(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"cifar-100-binary.* must be in .* got cifar-100-python.*pickles"):
        find_archive(ENTRIES["cifar100"], tmp_path)


WITHOUT_HOME = """
from pathlib import Path
from lowcost.data.catalogue import ENTRIES, find_archive, search
from lowcost.data.prepared import find_prepared
entry = ENTRIES["cifar10"]
Path("~/tensorflow_datasets/cifar10/1.0.0").mkdir(parents=True)
for name in ("dataset_info.json", "a.array_record"):
    Path("~/tensorflow_datasets/cifar10/1.0.0", name).touch()
print(find_prepared(entry), [str(folder) for folder in search(entry, "named")])
try:
    find_archive(entry)
except FileNotFoundError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a home")
def test_without_a_home_no_folder_is_taken_for_it(tmp_path):
    """Runs a process without HOME as a user who is not in /etc/passwd, as in many containers."""
    code = f"import os; os.chdir({str(tmp_path)!r}); os.setuid(54321)\n{WITHOUT_HOME}"
    tmp_path.chmod(0o777)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    preload = "import jax, lowcost.data.prepared, array_record\n"  # this user may not read what is installed
    done = subprocess.run([sys.executable, "-c", preload + code], env=environment, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "None ['named']"
    assert second.startswith(
        "cifar10: a folder to search for cifar-10-binary.tar.gz must be given, got no home directory"
    )


def test_a_home_that_is_unknown_is_refused(monkeypatch):
    """Without the error, the path would mean a folder whose name begins with ~."""
    with pytest.raises(
        ValueError, match=r"data_dir must be a path, got ~nobody-has-this-name/data, .* write it in full"
    ):
        search(CIFAR10, "~nobody-has-this-name/data")
    monkeypatch.setenv("LOWCOST_DATA", "~nobody-has-this-name/data")
    with pytest.raises(ValueError, match=r"LOWCOST_DATA must be a path, got ~nobody-has-this-name/data"):
        search(CIFAR10)
