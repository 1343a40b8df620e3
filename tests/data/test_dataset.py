"""A data set that is not well formed is refused, with one line that says what was expected."""

import dataclasses
import hashlib

import numpy as np
import pytest

from lowcost.data import Dataset, Split

IMAGES = np.zeros((3, 8, 6, 1), np.uint8)
LABELS = np.array([0, 1, 1], np.int32)


def dataset(train=None, test=None):
    good = Split(IMAGES, LABELS)
    return Dataset("toy", train=train or good, test=test or good, classes=("a", "b"), flip=False)


def test_a_well_formed_data_set():
    data = dataset()
    assert data.image_shape == (8, 6, 1)
    assert len(data.train) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"Split.images must be uint8 \[N, H, W, C\] with N ≥ 1, got float32"),
        (IMAGES[..., 0], LABELS, r"got uint8 \[3, 8, 6\]"),
        (IMAGES, LABELS.astype(np.int64), r"Split.labels must be int32 \[3\], one per image, got int64 \[3\]"),
        (IMAGES, LABELS[:, None], r"got int32 \[3, 1\]"),
        (IMAGES, LABELS[:2], r"int32 \[3\], one per image, got int32 \[2\]"),
        (IMAGES[:0], LABELS[:0], r"N ≥ 1, got uint8 \[0, 8, 6, 1\]"),
    ],
)
def test_a_malformed_split_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 0, 0]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_without_a_class_is_refused(labels, split):
    with pytest.raises(ValueError, match=rf"toy: {split} labels must be in 0\.\.1"):
        dataset(**{split: Split(IMAGES, np.array(labels, np.int32))})


def test_the_splits_must_agree_in_shape():
    with pytest.raises(ValueError, match=r"\(8, 6, 1\) as in training, got \(6, 8, 1\)"):
        dataset(test=Split(IMAGES.transpose(0, 2, 1, 3), LABELS))


def test_a_sample_is_drawn_once_and_for_all():
    """Some of the training images with their labels, each once, in their order; all test images."""
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    labels = (images.ravel() % 3).astype(np.int32)
    whole = Dataset("counted", Split(images, labels), Split(images[:5], labels[:5]), ("a", "b", "c"), False)
    some = whole.sample(10)
    rows = some.train.images.ravel()
    assert len(some.train) == 10
    assert np.all(np.diff(rows.astype(int)) > 0)
    assert rows[-1] > 10
    np.testing.assert_array_equal(some.train.labels, rows % 3)
    np.testing.assert_array_equal(some.train.images, whole.sample(10).train.images)
    assert some.test is whole.test
    for count in 0, 41:
        with pytest.raises(ValueError, match=f"counted: count must be 1 to 40 training images, got {count}"):
            whole.sample(count)


def test_the_digest_of_a_split_is_of_every_image_and_label():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2500, 2, 2, 3), np.uint8), np.zeros(2500, np.int32)
    known = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert Split(images, labels).digest == known
    strided = np.repeat(images, 2, axis=0)[::2]
    assert Split(strided, labels).digest == known
    labels = labels.copy()
    labels[2400] = 1
    assert Split(images, labels).digest != known


def test_the_digest_of_a_data_set_tells_what_training_sees():
    """A bit of any split, a label, an exchange of the splits or of two images, a name, the shape, a sample."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 6, 1), np.uint8), np.arange(12, dtype=np.int32) % 2
    other, swapped = images.copy(), images[[1, 0, *range(2, 12)]]
    other[-1, -1, -1, -1] ^= 1
    split, turned = Split(images, labels), Split(images.reshape(12, 6, 8, 1), labels)
    data = Dataset("toy", split, Split(images[:4], labels[:4]), ("a", "b\udcff"), flip=False)
    digests = [
        changed.digest
        for changed in (
            data,
            dataclasses.replace(data, train=Split(other, labels)),
            dataclasses.replace(data, test=Split(other[-4:], labels[-4:])),
            dataclasses.replace(data, train=Split(images, 1 - labels)),
            dataclasses.replace(data, train=Split(swapped, labels)),
            dataclasses.replace(data, train=data.test, test=data.train),
            dataclasses.replace(data, classes=("b\udcff", "a")),
            dataclasses.replace(data, train=turned, test=Split(images[:4].reshape(4, 6, 8, 1), labels[:4])),
            data.sample(11),
        )
    ]
    assert len(set(digests)) == len(digests)
    same = Dataset("other", Split(images.copy(), labels), data.test, data.classes, flip=True, origin="elsewhere")
    assert same.digest == data.digest
    assert data.sample(11).digest == same.sample(11).digest


def test_a_digest_does_not_read_a_memory_map_at_once(tmp_path):
    """One image more than is read in one piece, each of 5 MiB."""
    images = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(3, 1280, 1024, 4))
    split = Split(images, np.zeros(3, np.int32))
    assert [len(chunk) for chunk in split.chunks()] == [1, 1, 1]
    assert split.digest == hashlib.sha256(images.tobytes() + bytes(12)).hexdigest()
    small = Split(images.reshape(-1, 64, 64, 4), np.zeros(3 * 320, np.int32))
    assert np.shares_memory(small.chunks()[0], images)
    assert max(chunk.nbytes for chunk in small.chunks()) <= 2**22
    np.testing.assert_array_equal(np.concatenate(small.chunks()), small.images)
