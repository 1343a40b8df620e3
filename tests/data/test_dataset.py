"""A data set that is not well formed is refused, with one line that states what was expected."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcost.data import Dataset, Split, from_standard_units, to_standard_units, to_unit_range
from lowcost.data.splitting import pixel_fractions

IMAGES = np.zeros((3, 8, 6, 1), np.uint8)
LABELS = np.array([0, 1, 1], np.int32)


SEVERAL = np.array([[0, 1], [1, 1], [0, 0]], np.float32)
SCALE = ((5.0, -1.0), (0.5, 2.0))


def dataset(train=None, test=None, labels=LABELS, **options):
    good = Split(IMAGES, labels)
    return Dataset("toy", train=train or good, test=test or good, classes=("a", "b"), keeps=(), **options)


def counted(images, classes=3, **options):
    """Returns a data set whose images hold their number i in two pixels and have the label i % classes."""
    rows = np.asarray(images, "<u2")
    split = Split(rows.view(np.uint8).reshape(-1, 2, 1, 1), (rows % classes).astype(np.int32))
    return Dataset("counted", split, split, tuple("abcdef"[:classes]), (), **options)


def numbers(split):
    return split.images.reshape(-1, 2).view("<u2").ravel().tolist()


def test_a_well_formed_data_set():
    data = dataset()
    assert data.image_shape == (8, 6, 1)
    assert len(data.train) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            IMAGES.astype(np.float64),
            LABELS,
            r"Split.images must be uint8, .*, float32 \[N, \*grid, C\] with 1 to 3 grid axes and N ≥ 1, got float64",
        ),
        (IMAGES.astype(np.int32), LABELS, r"got int32 \[3, 8, 6, 1\]; cast other numbers to float32"),
        (IMAGES.astype(">u2"), LABELS, r"got >u2 \[3, 8, 6, 1\]"),
        (IMAGES[..., 0, 0], LABELS, r"got uint8 \[3, 8\]"),
        (IMAGES[:, None, None], LABELS, r"got uint8 \[3, 1, 1, 8, 6, 1\]"),
        (
            IMAGES,
            LABELS.astype(np.int64),
            r"Split.labels must be int32 \[3\], one per image, or float32 \[3, K\], or uint8 .*, got int64 \[3\]",
        ),
        (IMAGES, SEVERAL.astype(np.float64), r"or float32 \[3, K\], or uint8 .*, got float64 \[3, 2\]"),
        (IMAGES, SEVERAL[:2], r"or float32 \[3, K\], or uint8 .*, got float32 \[2, 2\]"),
        (IMAGES, SEVERAL[:, :0], r"or float32 \[3, K\], or uint8 .*, got float32 \[3, 0\]"),
        (IMAGES, LABELS[:, None], r"got int32 \[3, 1\]"),
        (IMAGES, LABELS[:2], r"int32 \[3\], one per image, or float32 \[3, K\], or uint8 .*, got int32 \[2\]"),
        (IMAGES[:0], LABELS[:0], r"N ≥ 1, got uint8 \[0, 8, 6, 1\]"),
    ],
)
def test_a_malformed_split_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


def test_a_file_belongs_to_each_image():
    """Each image keeps its file after sampling and in both parts of a hold-out."""
    with pytest.raises(ValueError, match=r"Split\.files must be 3 paths, one per image, or None, got 2"):
        Split(IMAGES, LABELS, ("a.png", "b.png"))
    data = counted(range(300))
    named = dataclasses.replace(data.train, files=tuple(f"{i}.png" for i in range(300)))
    held = dataclasses.replace(data, train=named).sample(200).hold_out(0.3)
    for split in (held.train, held.validation):
        assert split.files == tuple(f"{i}.png" for i in numbers(split))
    assert held.test.files is None
    assert held.digest == data.sample(200).hold_out(0.3).digest


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 0, 0]])
@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_a_label_without_a_class_is_refused(labels, split):
    with pytest.raises(ValueError, match=rf"toy: {split} labels must be in 0\.\.1"):
        dataset(**{split: Split(IMAGES, np.array(labels, np.int32))})


def test_the_splits_must_agree_in_shape():
    with pytest.raises(ValueError, match=r"\(8, 6, 1\) as in training, got \(6, 8, 1\)"):
        dataset(test=Split(IMAGES.transpose(0, 2, 1, 3), LABELS))
    with pytest.raises(ValueError, match=r"validation images must be \(8, 6, 1\) as in training, got \(6, 8, 1\)"):
        dataset(validation=Split(IMAGES.transpose(0, 2, 1, 3), LABELS))


def test_the_splits_must_agree_in_dtype():
    with pytest.raises(ValueError, match="toy: test images must be uint8 as in training, got int8"):
        dataset(test=Split(IMAGES.view(np.int8), LABELS))


def test_only_known_changes_keep_a_label():
    with pytest.raises(ValueError, match=r"toy: keeps must be of flip, shift, hide, scale, noise, got \('turn',\)"):
        Dataset("toy", Split(IMAGES, LABELS), Split(IMAGES, LABELS), ("a", "b"), ("turn",))


SIGNALS = np.ones((3, 9, 2), np.float32)


@pytest.mark.parametrize("images", [SIGNALS.astype(np.uint8), SIGNALS[..., 1:], SIGNALS[:, None]])
def test_only_float_signals_are_masked(images):
    split = Split(images, LABELS)
    with pytest.raises(
        ValueError, match=r"masked signals must be float32 \[N, points, C\] with a mask .*, got (ui|fl)"
    ):
        dataset(split, split, masked=True)
    hollow = Split(SIGNALS * np.array([1, 0, 1], np.float32)[:, None, None], LABELS)
    with pytest.raises(ValueError, match="toy: masked test signals must have valid points, got a mask of zeros"):
        dataset(Split(SIGNALS, LABELS), hollow, masked=True)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    offset=st.sampled_from([0, 1e4, -1e6]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_moments_of_floats(grid, channels, offset, masked, seed):
    """They are NumPy's in float64 over the training images, or over the valid points, rounded to float32."""
    rng = np.random.default_rng(seed)
    images = (offset + rng.normal(size=(5, *grid, channels))).astype(np.float32)
    images[..., 0] = 0.1
    values = images.reshape(-1, channels)
    if masked := masked and len(grid) == 1:
        valid = (np.arange(grid[0]) < rng.integers(1, grid[0] + 1, 5)[:, None])[..., None]
        values = images[valid[..., 0]]
        images = np.concatenate([images * valid, valid], -1).astype(np.float32)
    train = Split(images, np.arange(5, dtype=np.int32) % 2)
    data = dataset(train, Split(1 + images[:1], LABELS[:1]), masked=masked)
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    deviation[np.ptp(values, 0) == 0] = 1
    np.testing.assert_allclose(data.moments, [mean, deviation], rtol=1e-6)
    assert data.moments == tuple(tuple(np.float32(x).item() for x in numbers) for numbers in data.moments)
    assert data.moments[1][0] == 1
    assert data.image_shape == (*grid, channels + masked)


def test_moments_are_read_part_by_part(monkeypatch):
    images = np.random.default_rng(0).normal(3, 2, (50, 100, 2)).astype(np.float32)
    split = Split(images, np.zeros(50, np.int32))
    whole = split.moments()
    monkeypatch.setattr(Split, "chunks", lambda self: np.array_split(self.images, 7))
    np.testing.assert_allclose(split.moments(), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, [images.mean((0, 1), float), images.std((0, 1), float)], rtol=1e-12)


def test_the_digest_tells_dtype_and_mask():
    """The digests differ even where all bytes are the same; uint8 has no moments."""
    wide, signals = IMAGES.astype(np.uint16), Split(SIGNALS, LABELS)
    images = [IMAGES, IMAGES.view(np.int8), wide, wide.view(np.int16)]
    data = [dataset(split, split) for split in (*(Split(x, LABELS) for x in images), signals)]
    data.append(dataset(signals, signals, masked=True))
    assert len({each.digest for each in data}) == 6
    assert [each.moments is None for each in data] == [True] + 5 * [False]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16"])
def test_the_moments_of_integers(dtype):
    """They are those of the numbers scaled to [0, 1], even in a narrow range; a constant channel has deviation 1."""
    info = np.iinfo(dtype)
    images = np.random.default_rng(0).integers(40, 60, (50, 30, 3)).astype(dtype)
    images[..., 1], images[..., 2] = info.min, np.where(images[..., 2] > 50, info.max, info.min)
    split = Split(images, np.arange(50, dtype=np.int32) % 2)
    means, deviations = dataset(split, split).moments
    unit = to_unit_range(images).astype(float)
    np.testing.assert_allclose(means, unit.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(deviations, np.where([0, 1, 0], 1, unit.std((0, 1))), rtol=1e-4)
    standard = to_standard_units(to_unit_range(images), (means, deviations))
    np.testing.assert_allclose([standard.mean((0, 1)), standard.std((0, 1))], [[0, 0, 0], [1, 0, 1]], atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(grid=st.lists(st.integers(1, 7), min_size=1, max_size=3), masked=st.booleans(), seed=st.integers(0, 99))
def test_standard_units_and_back(grid, masked, seed):
    """The functions are inverse to each other and equal in NumPy and JAX; a mask and zero padding stay unchanged."""
    rng = np.random.default_rng(seed)
    moments = ((3.0, -0.5), (10.0, 0.25))
    images = (rng.normal(size=(3, *grid, 2)) * moments[1] + moments[0]).astype(np.float32)
    if masked:
        valid = rng.integers(0, 2, (3, *grid, 1)).astype(np.float32)
        images = np.concatenate([images * valid, valid], axis=-1)
    standard = to_standard_units(images, moments, masked)
    expected = (images[..., :2] - moments[0]) / moments[1] * (images[..., 2:] if masked else 1)
    np.testing.assert_allclose(standard[..., :2], expected, atol=1e-5)
    np.testing.assert_array_equal(standard[..., 2:], images[..., 2:])
    np.testing.assert_allclose(from_standard_units(standard, moments, masked), images, atol=1e-4)
    np.testing.assert_allclose(to_standard_units(jnp.asarray(images), moments, masked), standard, atol=1e-6)


def test_tags_and_values():
    assert dataset(labels=SEVERAL, task="tags").task == "tags"
    assert dataset(labels=SEVERAL - 0.3, task="values", scale=SCALE).scale == SCALE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "boxes"}, "task must be one of classes, tags, values, pixels, got 'boxes'"),
        ({"task": "tags"}, r"toy: train labels must be 0 or 1, for 2 tags, got 0\.\.1 in int32 \[3\]"),
        ({"labels": SEVERAL}, r"labels must be in 0\.\.1, one for each class, got 0\.0\.\.1\.0 in float32 \[3, 2\]"),
        ({"labels": SEVERAL + 1, "task": "tags"}, r"labels must be 0 or 1, for 2 tags, got 1\.0\.\.2\.0"),
        ({"labels": SEVERAL * np.nan, "task": "tags"}, "labels must be 0 or 1"),
        ({"labels": SEVERAL[:, :1], "task": "tags"}, r"for 2 tags, got 0\.0\.\.1\.0 in float32 \[3, 1\]"),
        (
            {"labels": SEVERAL / 0.5, "task": "values"},
            r"scale must be \(means, .*, got None for values",
        ),
        ({"labels": SEVERAL, "task": "values", "scale": ((1.0,), (1.0,))}, r"scale must be .*, got \(\(1\.0,\), "),
        ({"labels": SEVERAL, "task": "tags", "scale": SCALE}, r"scale must be .*, got .* for tags"),
        ({"scale": SCALE}, r"scale must be .*, got .* for classes"),
        (
            {"labels": np.where(SEVERAL, np.float32(np.inf), SEVERAL), "task": "values", "scale": SCALE},
            r"labels must be finite, for 2 values, got 0\.0\.\.inf",
        ),
    ],
)
def test_labels_of_another_task_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        dataset(**options)
    assert "\n" not in str(error.value)


def test_validation_images_are_chosen_by_their_pixels():
    """A documented rule chooses; images and labels stay together and in order, and the test images stay."""
    data = counted(range(2000))
    held = data.hold_out(0.3)
    assert held.test is data.test
    assert sorted(numbers(held.train) + numbers(held.validation)) == list(range(2000))
    for split in (held.train, held.validation):
        assert numbers(split) == sorted(numbers(split))
        np.testing.assert_array_equal(split.labels, np.array(numbers(split)) % 3)
    digests = [hashlib.sha256(b"pixels" + i.to_bytes(2, "little")).digest() for i in range(2000)]
    below = [i for i, digest in enumerate(digests) if int.from_bytes(digest[:8], "big") / 2**64 < 0.3]
    assert numbers(held.validation) == below
    assert abs(np.bincount(held.validation.labels) - 200).max() < 5 * np.sqrt(667 * 0.3 * 0.7)
    assert held.sample(5).validation is held.validation


@settings(max_examples=30, deadline=None)
@given(
    first=st.lists(st.integers(0, 999), max_size=60).map(lambda ids: [*ids, *range(1000, 1040)]),
    more=st.lists(st.integers(0, 999), max_size=60),
    share=st.floats(0.2, 0.8),
)
def test_added_images_move_none_from_validation_to_training(first, more, share):
    """Each image stays in its part, and so do its copies. Forty images are always present, so that no part is empty."""
    before = counted(first, classes=1).hold_out(share)
    after = counted([*more, *first], classes=1).hold_out(share)
    assert not set(numbers(after.train)) & set(numbers(after.validation))
    assert set(numbers(before.train)) <= set(numbers(after.train))
    assert set(numbers(before.validation)) <= set(numbers(after.validation))


def test_what_hold_out_refuses():
    for share in (0, 1, -1, 2, float("nan")):
        with pytest.raises(ValueError, match="share must be above 0 and below 1, got"):
            counted(range(100)).hold_out(share)
    with pytest.raises(
        ValueError, match=r"counted: hold_out \(--validation-share\) needs data without .* got \d+; use"
    ):
        counted(range(100)).hold_out(0.5).hold_out(0.5)
    for share, count in ((1e-9, 0), (1 - 1e-9, 100)):
        with pytest.raises(ValueError, match=f"share must leave images on both sides, .* {count} of 100; choose"):
            counted(range(100)).hold_out(share)
    with pytest.raises(ValueError, match=r"share must leave training images of b, got 0\.5; decrease it or add images"):
        halves(0, 1).hold_out(0.5)


def halves(training, validation, **options):
    """Returns a data set: images that `hold_out(0.5)` leaves for training have the first label, others the second."""
    data = counted(range(300), classes=2)
    held = np.isin(np.arange(300), numbers(data.hold_out(0.5).validation))
    labels = np.where(held[:, None], validation, training).astype(np.float32 if options else np.int32)
    split = Split(data.train.images, labels if options else labels.ravel())
    return dataclasses.replace(data, train=split, test=split, **options)


def test_classes_without_validation_images_are_named(capsys):
    """Tags that no validation image has are named too; for values there is no warning."""
    counted(range(300)).hold_out(0.5)
    assert capsys.readouterr().err == ""
    data = halves(1, 0)
    more = counted(range(1000, 1300), classes=1).train
    train = Split(np.concatenate([data.train.images, more.images]), np.concatenate([data.train.labels, more.labels]))
    dataclasses.replace(data, train=train).hold_out(0.5)
    assert capsys.readouterr().err == "warning: counted: no validation images of b\n"
    halves([1, 1], [0, 1], classes=("rare\n", "all"), task="tags").hold_out(0.5)
    assert capsys.readouterr().err == "warning: counted: no validation images of rare\\n\n"
    halves([0, 1], [1, 1], classes=("rare", "all"), task="tags").hold_out(0.5)
    assert capsys.readouterr().err == "warning: counted: no train images of rare\n"
    halves([1, 1], [0, 1], classes=("x", "y"), task="values", scale=SCALE).hold_out(0.5)
    assert capsys.readouterr().err == ""


def test_a_sample_is_drawn_once_and_for_all(capsys):
    """A sample has some of the training images with their labels, each once and in order, and all test images."""
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    labels = (images.ravel() % 3).astype(np.int32)
    whole = Dataset("counted", Split(images, labels), Split(images[:5], labels[:5]), ("a", "b", "c"), ())
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
    assert not capsys.readouterr().err
    whole.sample(2)
    assert "warning: counted: no train images of " in capsys.readouterr().err


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
    """It changes with any bit, a label, the order of splits or images, a name, the shape, the task, or a sample."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 6, 1), np.uint8), np.arange(12, dtype=np.int32) % 2
    other, swapped = images.copy(), images[[1, 0, *range(2, 12)]]
    other[-1, -1, -1, -1] ^= 1
    split, turned = Split(images, labels), Split(images.reshape(12, 6, 8, 1), labels)
    data = Dataset("toy", split, Split(images[:4], labels[:4]), ("a", "b\udcff"), ())
    marked = np.stack([labels, 1 - labels], 1).astype(np.float32)
    tags = Dataset("toy", Split(images, marked), Split(images[:4], marked[:4]), data.classes, (), task="tags")
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
            dataclasses.replace(data, validation=data.test),
            dataclasses.replace(data, validation=data.train),
            tags,
            dataclasses.replace(tags, validation=tags.test),
            dataclasses.replace(tags, task="values", scale=((1.0, 2.0), (3.0, 4.0))),
            dataclasses.replace(tags, task="values", scale=((1.0, 2.0), (3.0, 4.5))),
        )
    ]
    assert len(set(digests)) == len(digests)
    known = ascii((data.train.digest, data.test.digest, (8, 6, 1), data.classes)).encode()
    assert data.digest == hashlib.sha256(known).hexdigest()  # as in the configurations of old runs
    same = Dataset("other", Split(images.copy(), labels), data.test, data.classes, ("flip",), origin="elsewhere")
    assert same.digest == data.digest
    assert data.sample(11).digest == same.sample(11).digest


def test_a_digest_does_not_read_a_memory_map_at_once(tmp_path):
    """Images of 5 MiB are read one at a time, and small ones in pieces of at most 4 MiB."""
    images = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(3, 1280, 1024, 4))
    split = Split(images, np.zeros(3, np.int32))
    assert [len(chunk) for chunk in split.chunks()] == [1, 1, 1]
    assert split.digest == hashlib.sha256(images.tobytes() + bytes(12)).hexdigest()
    small = Split(images.reshape(-1, 64, 64, 4), np.zeros(3 * 320, np.int32))
    assert np.shares_memory(small.chunks()[0], images)
    assert max(chunk.nbytes for chunk in small.chunks()) <= 2**22
    np.testing.assert_array_equal(np.concatenate(small.chunks()), small.images)


def test_a_class_must_not_lose_all_its_training_images_even_if_many_have_none():
    """The 40 classes have images only from the 20th on; the single image of one class would be held out."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 1), np.uint8)
    held = pixel_fractions(images) < 0.5
    labels = 20 + np.arange(60, dtype=np.int32) % 19
    one = np.flatnonzero(held)[:1]
    images, labels = images.take([*one, *np.flatnonzero(~held)], axis=0), labels[: 1 + np.sum(~held)].copy()
    labels[0], classes = 39, tuple(f"c{i}" for i in range(40))
    more = rng.integers(0, 256, (200, 4, 4, 1), np.uint8)  # of other classes, so that both parts have images
    train = Split(np.concatenate([images, more]), np.concatenate([labels, 20 + np.arange(200, dtype=np.int32) % 19]))
    dataset = Dataset("many", train, train, classes, ())
    with pytest.raises(ValueError, match=r"must leave training images of c39, got 0\.5"):
        dataset.hold_out(0.5)
