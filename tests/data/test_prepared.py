"""A small data set that tensorflow-datasets itself has prepared is read back without TensorFlow."""

import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lowcost.data.catalogue import ENTRIES
from lowcost.data.prepared import find_prepared, read_prepared

SMALL = replace(ENTRIES["stl10"], image_shape=(6, 5, 3), train=7, test=4)


def picture(i, mode="RGB"):
    """Returns the i-th image as a PNG file and as its pixels, which differ between images."""
    pixels = np.random.default_rng(i).integers(0, 256, SMALL.image_shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    file.seek(0)
    return file, pixels


def prepare(data_dir, *, labels=lambda i: i % 10, classes=10, mode="RGB", key="image"):
    """Prepares SMALL as tensorflow-datasets does: images 0..6 for training and 7..10 for the test."""
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = SMALL.name

        def _info(self):
            features = {
                key: tfds.features.Image(shape=SMALL.image_shape),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 7), "test": self._generate_examples(7, 11)}

        def _generate_examples(self, first, last):
            for i in range(first, last):
                yield i, {key: picture(i, mode)[0], "label": labels(i)}

    Small(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns a directory with SMALL, which tests must not change."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare(directory)
    return directory


@pytest.fixture
def build(prepared, tmp_path):
    """Returns a copy of SMALL's folder, which a test may damage."""
    return shutil.copytree(prepared / "stl10/1.0.0", tmp_path / "copy/stl10/1.0.0")


def test_the_images_and_labels_come_back(prepared):
    train, test = read_prepared(find_prepared(SMALL, prepared), SMALL)
    for split, indices in ((train, range(7)), (test, range(7, 11))):
        expected = {i % 10: picture(i)[1] for i in indices}
        assert sorted(split.labels) == sorted(expected)
        for image, label in zip(split.images, split.labels, strict=True):
            np.testing.assert_array_equal(image, expected[label])


def test_nothing_prepared_is_none_and_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert find_prepared(SMALL) is None
    (tmp_path / "stl10/incomplete.ABC_1.0.0").mkdir(parents=True)
    (tmp_path / "stl10/incomplete.ABC_1.0.0/dataset_info.json").write_text("{}")
    (tmp_path / "stl10/1.0.0").mkdir()  # as a copy begins
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10/3.0.2/dataset_info.json").write_text("{}")
    assert find_prepared(SMALL, tmp_path) is None


def test_where_it_is_found(tmp_path, monkeypatch):
    """Searches data_dir, $TFDS_DATA_DIR and ~/tensorflow_datasets, and takes the newest complete version."""
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")

    def add(path):
        path.mkdir(parents=True)
        (path / "dataset_info.json").write_text("{}")
        (path / "stl10-train.array_record-00000-of-00001").touch()
        return path

    for directory in (tmp_path / "home/tensorflow_datasets", tmp_path / "home/tfds", tmp_path / "given"):
        oldest = add(directory / "stl10/1.9.9")
        assert find_prepared(SMALL, tmp_path / "given") == oldest
        newest = add(directory / "stl10/1.10.0")
        (directory / "stl10/2.0.0").mkdir()
        (directory / "stl10/2.0.0/stl10-train.array_record-00000-of-00001").touch()
        (directory / "stl10/3.0.0").mkdir()
        (directory / "stl10/3.0.0/dataset_info.json").write_text("{}")
        (directory / "stl10/3.0.0/stl10-train.tfrecord-00000-of-00001").touch()
        assert find_prepared(SMALL, tmp_path / "given") == newest


def test_an_empty_variable_does_not_mean_the_current_folder(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    assert find_prepared(SMALL) is None
    assert find_prepared(SMALL, ".") is not None


def change_info(build, change):
    path = build / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda build: change_info(build, lambda info: info.update(fileFormat="tfrecord")),
            "array_record, got tfrecord",
        ),
        (lambda build: change_info(build, lambda info: info["splits"].pop()), "test"),
        (lambda build: (build / "dataset_info.json").write_text("{"), "JSON"),
        (lambda build: (build / "features.json").unlink(), "Cannot restore"),
        (lambda build: next(build.glob("*train*record*")).unlink(), "No such file"),
        (lambda build: next(build.glob("*train*record*")).write_bytes(b""), "64KB"),
        (lambda build: flip_a_bit(next(build.glob("*train*record*"))), "hash mismatch"),
        (lambda build: flip_a_bit(next(build.glob("*test*record*"))), "hash mismatch"),
    ],
    ids=["format", "split", "info", "features", "shard", "empty", "train bit", "test bit"],
)
def test_a_folder_that_cannot_be_read_is_named(build, damage, reason):
    damage(build)
    with pytest.raises(ValueError, match=reason) as caught:
        read_prepared(build, SMALL)
    message = str(caught.value)
    assert message.startswith(f"{build} must hold stl10, got ")
    assert 'prepare it again with file_format="array_record", or remove the folder' in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (replace(SMALL, train=8), "train must have 8 images, got 7"),
        (replace(SMALL, test=3), "test must have 3 images, got 4"),
        (replace(SMALL, image_shape=(5, 6, 3)), r"train image 0 must be \[5, 6, 3\], got \[6, 5, 3\]"),
        (replace(SMALL, classes=SMALL.classes[:6]), r"train labels must be in 0\.\.5, got 0\.\.6"),
        (replace(SMALL, classes=SMALL.classes[:9]), r"test labels must be in 0\.\.8, got 0\.\.9"),
    ],
)
def test_what_differs_from_the_entry(prepared, entry, reason):
    with pytest.raises(ValueError, match=reason):
        read_prepared(find_prepared(entry, prepared), entry)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": lambda i: i - 1}, r"train labels must be in 0\.\.9, got -1\.\.5"),
        ({"labels": lambda i: 2**32 * i, "classes": 2**40}, "OverflowError"),
        ({"mode": "1"}, r"must be \[6, 5, 3\], got \[6, 5\]"),
        ({"mode": "RGBA"}, r"got \[6, 5, 4\]"),
        ({"key": "picture"}, "image"),
    ],
    ids=["negative", "large", "bilevel", "alpha", "feature"],
)
def test_other_content(tmp_path, options, reason):
    prepare(tmp_path, **options)
    with pytest.raises(ValueError, match=reason):
        read_prepared(find_prepared(SMALL, tmp_path), SMALL)
