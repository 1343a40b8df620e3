"""A data set that is not well formed is refused, with one line that says what was expected."""

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
        (IMAGES.astype(np.float32), LABELS, r"Split.images: expected uint8 \[N, H, W, C\], got float32"),
        (IMAGES[..., 0], LABELS, r"got uint8 \[3, 8, 6\]"),
        (IMAGES, LABELS.astype(np.int64), r"Split.labels: expected int32 \[N\], got int64 \[3\]"),
        (IMAGES, LABELS[:, None], r"got int32 \[3, 1\]"),
        (IMAGES, LABELS[:2], "got 3 images and 2 labels"),
        (IMAGES[:0], LABELS[:0], "at least one, got 0 images"),
    ],
)
def test_a_malformed_split_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 0, 0]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_without_a_class_is_refused(labels, split):
    with pytest.raises(ValueError, match=rf"toy: expected {split} labels in 0\.\.1"):
        dataset(**{split: Split(IMAGES, np.array(labels, np.int32))})


def test_the_splits_must_agree_in_shape():
    with pytest.raises(ValueError, match=r"\(8, 6, 1\), got \(6, 8, 1\)"):
        dataset(test=Split(IMAGES.transpose(0, 2, 1, 3), LABELS))


def test_mean_and_deviation_are_those_of_the_training_images():
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (2500, 2, 3, 3)) // np.array([1, 2, 3])).astype(np.uint8)
    split = Split(images, np.zeros(2500, np.int32))
    other = Split(images[:1] // 2, np.zeros(1, np.int32))
    data = Dataset("any", split, other, ("one",), flip=False)
    np.testing.assert_allclose(data.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.deviation, (images / 255).std((0, 1, 2)), rtol=1e-12)


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
        with pytest.raises(ValueError, match=f"counted has 40 training images, got {count}"):
            whole.sample(count)
