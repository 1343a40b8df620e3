"""Tests the digits, published data sets, and data sets by name."""

import dataclasses
import hashlib
import io
import os
import socket
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lowcost.data import Split, load, published, sources
from lowcost.data.catalogue import ENTRIES


def test_digits_are_the_framed_scans():
    """The images are scikit-learn's, scaled from 0..16 to 0..255, inside a zero frame of two pixels."""
    data = load("digits")
    assert (len(data.train), len(data.test), data.image_shape) == (1437, 360, (12, 12, 1))
    assert data.classes == tuple("0123456789")
    assert data.keeps == ("shift", "hide")
    scans, labels = load_digits(return_X_y=True)
    framed = np.pad(scans.reshape(-1, 8, 8), ((0, 0), (2, 2), (2, 2)))[..., None]
    test = np.arange(len(labels)) % 5 == 0
    for split, chosen in ((data.test, test), (data.train, ~test)):
        np.testing.assert_allclose(split.images, framed[chosen] * (255 / 16), atol=0.5)
        np.testing.assert_array_equal(split.labels, labels[chosen])


def test_a_folder_by_name(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    data = load("folder", data_dir=tmp_path, image_size=16, cache_dir=tmp_path / "cache")
    assert data.image_shape == (16, 16, 3)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "name must be one of digits, folder, arrays, cifar10, cifar100, stl10, got 'mnist'"),
        ("folder", {}, "data_dir must be where the images of folder are, got None"),
        ("arrays", {}, "data_dir must be where the images of arrays are, got None"),
        ("digits", {"image_size": 32}, "image_size must be None for digits"),
        ("arrays", {"image_size": 32}, "image_size must be None for arrays, got 32; only folder can have it"),
        ("folder", {"grid_axes": 2}, "grid_axes must be None for folder, got 2; only arrays can have it"),
        ("cifar10", {"length": 2}, "length must be None for cifar10, got 2; only arrays can have it"),
    ],
)
def test_what_load_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_only_archives_are_published():
    with pytest.raises(ValueError, match="name must be one of cifar10, cifar100, stl10, got 'digits'"):
        published("digits")


def refuse_the_network(*arguments, **options):
    raise AssertionError("the network was asked")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Hides archives and prepared folders outside of tmp_path, and forbids the network."""
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "TFDS_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("LOWCOST_DATA", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_the_network)
    return tmp_path


@pytest.fixture
def cifar10(alone, monkeypatch):
    """Writes CIFAR-10 in its own layout with ten training and three test images; returns their records."""
    records = np.random.default_rng(0).integers(0, 256, (13, 3073), np.uint8)
    records[:, 0] %= 10
    (alone / "data").mkdir()
    path = alone / "data" / ENTRIES["cifar10"].filename
    with tarfile.open(path, "w:gz") as archive:
        for i in range(6):
            content = records[2 * i : 2 * i + (3 if i == 5 else 2)].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{f'data_batch_{i + 1}' if i < 5 else 'test_batch'}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    entry = dataclasses.replace(ENTRIES["cifar10"], size=size, sha256=sha256, train=10, test=3)
    monkeypatch.setitem(sources.ENTRIES, "cifar10", entry)
    return records


def check(data, records):
    assert (data.name, len(data.train), len(data.test), data.keeps) == ("cifar10", 10, 3, ("flip", "shift", "hide"))
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    np.testing.assert_array_equal(labels, records[:, 0])
    np.testing.assert_array_equal(images, records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("place", ["data_dir", "LOWCOST_DATA", "user's cache"])
def test_an_archive_is_found_where_it_may_be(cifar10, alone, monkeypatch, place):
    options = {}
    if place == "data_dir":
        options = {"data_dir": alone / "data"}
    elif place == "LOWCOST_DATA":
        monkeypatch.setenv("LOWCOST_DATA", str(alone / "data"))
    else:
        monkeypatch.setattr(sources, "find_archive", lambda entry, data_dir: alone / "data" / entry.filename)
    check(load("cifar10", **options), cifar10)


def test_the_second_start_maps_the_cache(cifar10, alone):
    """The second start reads no archive, and the pixels stay in the file."""
    check(load("cifar10", data_dir=alone / "data", cache_dir=alone / "cache"), cifar10)
    (alone / "data" / ENTRIES["cifar10"].filename).unlink()
    data = load("cifar10", cache_dir=alone / "cache")
    check(data, cifar10)
    assert isinstance(data.train.images, np.memmap)
    assert data.origin == str(*(alone / "cache").iterdir())


def test_what_is_prepared_comes_first(cifar10, alone, monkeypatch):
    """Prepared data has its own cache, because its order differs."""
    check(load("cifar10", data_dir=alone / "data", cache_dir=alone / "cache"), cifar10)
    splits = [Split(np.full((n, 32, 32, 3), n, np.uint8), np.zeros(n, np.int32)) for n in (10, 3)]
    monkeypatch.setattr(sources, "find_prepared", lambda entry, data_dir: alone / "3.0.2")
    monkeypatch.setattr(sources, "read_prepared", lambda folder, entry: tuple(splits))
    for _ in range(2):
        data = load("cifar10", data_dir=alone / "data", cache_dir=alone / "cache")
        assert (data.train.images == 10).all()
        assert (data.test.images == 3).all()
    monkeypatch.setattr(sources, "find_prepared", lambda entry, data_dir: None)
    check(load("cifar10", data_dir=alone / "data", cache_dir=alone / "cache"), cifar10)


def test_a_download_goes_where_it_is_found_again(cifar10, alone, monkeypatch):
    def fetched(entry, folder):
        assert folder == alone / "new"
        return alone / "data" / entry.filename

    monkeypatch.setattr(sources, "download_archive", fetched)
    check(load("cifar10", data_dir=alone / "new", download=True), cifar10)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("cache", [True, False])
def test_without_the_archive_the_answer_comes_at_once(alone, name, cache):
    """The error comes without network access, nothing is written, and the message states the remedy."""
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"(?s)\.tar\.gz must be in .*https?://.*sha256.* digits needs no file"):
        load(name, data_dir=alone / "data", cache_dir=alone / "cache" if cache else None)
    assert time.monotonic() - begin < 2
    assert os.listdir(alone) == []


def test_a_damaged_archive_leaves_nothing(cifar10, alone):
    path = alone / "data" / ENTRIES["cifar10"].filename
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="got a damaged one, sha256"):
        load("cifar10", data_dir=alone / "data", cache_dir=alone / "cache")
    assert os.listdir(alone) == ["data"]
    assert path.read_bytes() == content


def test_without_a_network_a_download_ends_at_once(alone, monkeypatch):
    """The look-up of a name may hang for minutes."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: time.sleep(20))
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=r"does not answer .* digits needs no file"):
        load("cifar10", data_dir=alone / "data", download=True)
    assert time.monotonic() - begin < 2
    assert os.listdir(alone) == []
