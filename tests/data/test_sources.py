"""Digits, and data sets by name."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lowcost.data import load


def test_digits_are_the_framed_scans():
    """Inside a zero frame of two pixels stand scikit-learn's images, scaled from 0..16 to 0..255."""
    data = load("digits")
    assert (len(data.train), len(data.test), data.image_shape) == (1437, 360, (12, 12, 1))
    assert data.classes == tuple("0123456789")
    assert not data.flip
    scans, labels = load_digits(return_X_y=True)
    framed = np.pad(scans.reshape(-1, 8, 8), ((0, 0), (2, 2), (2, 2)))[..., None]
    test = np.arange(len(labels)) % 5 == 0
    for split, chosen in ((data.test, test), (data.train, ~test)):
        np.testing.assert_allclose(split.images, framed[chosen] * (255 / 16), atol=0.5)
        np.testing.assert_array_equal(split.labels, labels[chosen])


def test_a_folder_by_name(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "cat" / "0.png")
    data = load("folder", data_dir=tmp_path, image_size=16, cache_dir=tmp_path / "cache")
    assert data.image_shape == (16, 16, 3)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "unknown data set 'mnist'; expected one of: digits, folder"),
        ("folder", {}, "folder needs data_dir"),
        ("digits", {"image_size": 32}, "digits has images of one size"),
    ],
)
def test_what_load_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)
