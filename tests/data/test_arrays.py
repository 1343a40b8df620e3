"""Arrays in a file or a folder become a data set, or are refused in one line."""

import hashlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcost.data import load
from lowcost.data.dataset import DTYPES
from lowcost.data.signals import resample, with_mask
from lowcost.data.splitting import fractions

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (40, 6, 5, 3), np.uint8), np.arange(40) % 4
SIGNALS = RNG.normal(size=(40, 30)).astype(np.float32)
ONE = {"train_images": IMAGES, "train_labels": LABELS}
TWO = {**ONE, "test_images": IMAGES[::-1] ^ 1, "test_labels": LABELS[::-1]}
LENGTHS = 1 + np.arange(40) % 30


def read(tmp_path, arrays, **options):
    np.savez(tmp_path / "data.npz", **arrays)
    return load("arrays", data_dir=tmp_path / "data.npz", **options)


@pytest.mark.parametrize("grid", [(28, 28), (28, 28, 3), (9, 9, 9)], ids=str)
def test_a_file_of_the_form_of_medmnist_needs_no_flags(grid, tmp_path):
    """Reads uint8 images in grey or colour, or volumes, with labels [N, 1] in three parts."""
    arrays = {}
    for part, n in (("train", 30), ("val", 10), ("test", 20)):
        arrays[f"{part}_images"] = RNG.integers(0, 256, (n, *grid), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n, dtype=np.uint8) % 5)[:, None]
    data = read(tmp_path, arrays)
    assert data.image_shape == (grid if grid[-1] == 3 else (*grid, 1))
    assert (data.task, data.moments, data.masked, data.keeps) == ("classes", None, False, ("shift", "hide"))
    assert data.classes == tuple("01234")
    for name, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        np.testing.assert_array_equal(data.splits[name].images.ravel(), arrays[f"{part}_images"].ravel())
        np.testing.assert_array_equal(data.splits[name].labels, arrays[f"{part}_labels"][:, 0])


def test_other_names_and_a_folder(tmp_path):
    """A folder is memory-mapped; it is the same data set as a file, with either form of the names."""
    known = read(tmp_path, TWO)
    renamed = {f"{'x' if name.endswith('images') else 'y'}_{name.split('_')[0]}": a for name, a in TWO.items()}
    assert read(tmp_path, renamed).digest == known.digest
    (tmp_path / "folder").mkdir()
    for name, array in renamed.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    folder = load("arrays", data_dir=tmp_path / "folder")
    assert folder.digest == known.digest
    assert isinstance(folder.train.images.base, np.memmap) or isinstance(folder.train.images, np.memmap)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", ">u2", "float16", "float64", ">f4", "bool", "int64"]
)
def test_numbers_keep_their_values(dtype, tmp_path):
    """Integers of 8 and 16 bits keep their dtype; all others become float32."""
    images = RNG.integers(0, 2 if dtype == "bool" else 100, (40, 7, 3)).astype(dtype)
    data = read(tmp_path, {"train_images": images, "train_labels": LABELS}, grid_axes=1)
    np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]).sum(), images.sum(dtype=float))
    native = np.dtype(dtype).newbyteorder("=").name
    assert data.train.images.dtype.name == (native if native in DTYPES else "float32")
    assert (data.moments is None) == (native == "uint8")


def test_the_split_is_by_content(tmp_path):
    """A documented rule splits, independently of that for validation images; copies stay together, in any order."""
    images = RNG.integers(0, 256, (400, 5, 5), np.uint8)
    images[200:300] = images[:100]
    arrays = {"train_images": images, "train_labels": np.arange(400) % 2}
    data = read(tmp_path, arrays, test_share=0.3)
    tested = fractions(hashlib.sha256(image.astype("<f4").tobytes()).digest() for image in images) < 0.3
    np.testing.assert_array_equal(data.test.images[..., 0], images[tested])
    np.testing.assert_array_equal(data.train.labels, arrays["train_labels"][~tested])
    assert data.test.files == tuple(f"train[{row}]" for row in np.flatnonzero(tested))
    held = data.hold_out(0.3)
    assert 40 < len(held.validation) < 130
    again = read(tmp_path, {**arrays, "test_images": images[:1], "test_labels": np.arange(1)}).hold_out(0.3)
    numbers = [int(name[6:-1]) for name in again.validation.files]  # train[17]
    np.testing.assert_array_equal(again.validation.images[..., 0], images[numbers])
    order = RNG.permutation(400)
    again = read(tmp_path, {name: array[order] for name, array in arrays.items()}, test_share=0.3)
    assert sorted(map(bytes, again.test.images)) == sorted(map(bytes, data.test.images))


def test_copies_stay_together_whatever_their_type_and_padding_is(tmp_path):
    """The same numbers in another dtype give the same parts; the points after the end of a signal have no effect."""
    arrays = {"train_images": RNG.normal(size=(80, 30)).astype("<f4"), "train_labels": np.arange(80) % 2}
    lengths = np.full(80, 12)
    want = read(tmp_path, arrays).test.images
    for dtype in ("<f8", ">f4"):
        again = read(tmp_path, {**arrays, "train_images": arrays["train_images"].astype(dtype)})
        np.testing.assert_array_equal(again.test.images, want)
    want = read(tmp_path, {**arrays, "train_lengths": lengths}).test.images
    arrays["train_images"][:, 12:] = np.nan
    np.testing.assert_array_equal(read(tmp_path, {**arrays, "train_lengths": lengths}).test.images, want)


def test_strings_are_classes(tmp_path):
    """Classes are sorted, or in the order of the array `classes`, which also names integers."""
    names = np.array(["fox", "ant", "owl", "bee"])
    data = read(tmp_path, {**TWO, "train_labels": names[LABELS], "test_labels": names[LABELS][:, None]})
    assert data.classes == ("ant", "bee", "fox", "owl")
    assert [data.classes[i] for i in data.train.labels] == names[LABELS].tolist()
    for labels in (LABELS, names[LABELS]):
        ordered = read(tmp_path, {**TWO, "train_labels": labels, "test_labels": labels, "classes": names})
        assert ordered.classes == tuple(names)
        np.testing.assert_array_equal(ordered.test.labels, LABELS)


def test_tags_and_values(tmp_path):
    """Values are standardised with the moments of the training images."""
    tags = RNG.integers(0, 2, (40, 3))
    data = read(tmp_path, {**TWO, "train_labels": tags, "test_labels": tags.astype(bool)}, task="tags")
    assert (data.classes, data.task) == (("0", "1", "2"), "tags")
    np.testing.assert_array_equal(data.test.labels, tags)
    for shape in ((40,), (40, 2)):
        values = RNG.normal(3, 5, shape)
        arrays = {**TWO, "train_labels": values, "test_labels": 2 * values}
        data = read(tmp_path, {**arrays, "classes": np.array(["x", "y"][: values.size // 40])}, task="values")
        np.testing.assert_allclose(data.scale, [values.reshape(40, -1).mean(0), values.reshape(40, -1).std(0)])
        np.testing.assert_allclose(data.train.labels.std(0), 1, rtol=1e-5)
        restored = data.test.labels * data.scale[1] + data.scale[0]
        np.testing.assert_allclose(restored, 2 * values.reshape(40, -1), rtol=1e-4, atol=1e-4)


def test_the_changes_that_keep_a_label(tmp_path):
    signals = {"train_images": SIGNALS, "train_labels": LABELS}
    assert read(tmp_path, signals).keeps == ("shift", "hide", "scale", "noise")
    assert read(tmp_path, {**signals, "keeps": np.array(["flip", "noise"])}).keeps == ("flip", "noise")
    for none in (np.array([]), np.array([], str), np.zeros((0, 3), int)):
        assert read(tmp_path, {**signals, "keeps": none}).keeps == ()
    with pytest.raises(ValueError, match=r"arrays: keeps must be of flip, shift, hide, scale, noise, got \('turn',\)"):
        read(tmp_path, {**signals, "keeps": np.array(["turn"])})


def test_signals_of_different_lengths(tmp_path):
    """The mask is the last channel; padding of any value, even NaN, becomes zero and does not affect the moments."""
    padded = np.where(np.arange(30) < LENGTHS[:, None], SIGNALS, np.nan)
    arrays = {"train_images": padded, "train_labels": LABELS, "train_lengths": LENGTHS}
    arrays |= {"test_images": padded[::-1], "test_labels": LABELS[::-1], "test_lengths": LENGTHS[::-1]}
    data = read(tmp_path, arrays)
    assert data.masked
    assert data.image_shape == (30, 2)
    np.testing.assert_array_equal(data.train.images[..., 1].sum(1), LENGTHS)
    np.testing.assert_array_equal(data.train.images[..., 0], np.nan_to_num(padded))
    valid = SIGNALS[np.arange(30) < LENGTHS[:, None]].astype(float)
    np.testing.assert_allclose(data.moments, [[valid.mean()], [valid.std()]], rtol=1e-6)
    other = {name.replace("train_lengths", "lengths_train"): array for name, array in arrays.items()}
    assert read(tmp_path, other).digest == data.digest
    resampled = read(tmp_path, arrays, length=12)
    assert not resampled.masked
    for signal, new, n in zip(SIGNALS, resampled.train.images[..., 0], LENGTHS, strict=True):
        np.testing.assert_allclose(new, np.interp(np.linspace(0, n - 1, 12), np.arange(n), signal[:n]), atol=1e-5)
    split = read(tmp_path, {name: array for name, array in arrays.items() if name.startswith("train")})
    assert split.masked
    assert sorted(split.train.images[..., 1].sum(1).tolist() + split.test.images[..., 1].sum(1).tolist()) == sorted(
        LENGTHS
    )


def test_empty_arrays_are_refused(tmp_path):
    empty = {"train_images": np.zeros((40, 0)), "train_labels": LABELS}
    refused(tmp_path, empty, r"train images must hold numbers, got shape \[40, 0, 1\]", length=4)
    none = {"train_images": SIGNALS, "train_labels": np.zeros((40, 0)), "test_images": SIGNALS, "test_labels": LABELS}
    refused(tmp_path, none, r"train labels must be numbers \[N, K\], one for each of the values, got", task="values")


@pytest.mark.parametrize("channels", [3, 30])
def test_arrays_with_lengths_are_signals(channels, tmp_path):
    """They need no grid_axes, not even if there are as many channels as points."""
    arrays = {"train_images": np.repeat(SIGNALS[..., None], channels, -1), "train_labels": LABELS}
    assert read(tmp_path, {**arrays, "train_lengths": LENGTHS}).image_shape == (30, channels + 1)
    assert read(tmp_path, arrays, length=12).image_shape == (12, channels)


def test_parts_of_different_lengths_are_resampled(tmp_path):
    arrays = {"train_images": SIGNALS, "train_labels": LABELS, "test_images": SIGNALS[:, :20], "test_labels": LABELS}
    assert read(tmp_path, arrays, length=25).image_shape == (25, 1)
    with pytest.raises(ValueError, match=r"test images must be \(30, 1\) as in training, got \(20, 1\)"):
        read(tmp_path, arrays)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 20), points=st.integers(1, 20), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_resampling_is_linear_interpolation(n, points, channels, seed):
    """Reproduces affine signals, keeps both ends, ignores the padding, and is the identity for points = n."""
    rng = np.random.default_rng(seed)
    signals = rng.normal(size=(4, 20, channels)).astype(np.float32)
    lengths = np.array([n, 1, 20, n])
    np.testing.assert_array_equal(resample(signals[:, :n], n), signals[:, :n])
    new = resample(signals, points, lengths)
    np.testing.assert_array_equal(new[:, 0], signals[:, 0])
    if points > 1:
        np.testing.assert_allclose(new[:, -1], signals[np.arange(4), lengths - 1], atol=1e-6)
    changed = np.where(np.arange(20)[:, None] < lengths[:, None, None], signals, np.float32(np.nan))
    np.testing.assert_array_equal(resample(changed, points, lengths), new)
    for i in range(4):  # whatever the lengths of the others
        np.testing.assert_array_equal(resample(signals[i : i + 1], points, lengths[i : i + 1])[0], new[i])
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None], (4, 20, channels))
    expected = np.linspace(0, lengths - 1, points, axis=1)
    np.testing.assert_allclose(resample(ramp, points, lengths)[..., 0], expected, atol=1e-5)
    np.testing.assert_array_equal(with_mask(changed, lengths)[..., -1].sum(1), lengths)


@pytest.mark.parametrize(
    ("shape", "grid_axes", "expected"),
    [
        ((30,), None, (30, 1)),
        ((8, 8), None, (8, 8, 1)),
        ((8, 8), 1, (8, 8)),
        ((30, 6), 1, (30, 6)),
        ((30, 6), 2, (30, 6, 1)),
        ((5, 6, 1), None, (5, 6, 1)),
        ((5, 6, 3), None, (5, 6, 3)),
        ((5, 6, 3), 3, (5, 6, 3, 1)),
        ((5, 6, 7), 2, (5, 6, 7)),
        ((4, 4, 4), None, (4, 4, 4, 1)),
        ((4, 4, 4), 2, (4, 4, 4)),
        ((4, 5, 6, 2), None, (4, 5, 6, 2)),
    ],
)
def test_which_axes_are_the_grid(shape, grid_axes, expected, tmp_path):
    arrays = {"train_images": np.zeros((40, *shape), np.int16), "train_labels": LABELS % 2}
    arrays |= {"test_images": arrays["train_images"] + np.int16(1), "test_labels": LABELS % 2}
    assert read(tmp_path, arrays, grid_axes=grid_axes).image_shape == expected


@pytest.mark.parametrize(
    ("shape", "grid_axes", "message"),
    [
        (
            (30, 6),
            None,
            "got None; add --grid-axes: 1 means signals of 30 points with 6 channels, and 2 means images of ",
        ),
        (
            (5, 6, 7),
            None,
            "2 means images of 5 x 6 points with 7 channels, and 3 means volumes of 5 x 6 x 7 points with",
        ),
        ((), None, r"must be \[N, \*grid\] or \[N, \*grid, C\] with 1 to 3 grid axes, got \[40\]"),
        ((2, 3, 4, 5, 6), None, r"with 1 to 3 grid axes, got \[40, 2, 3, 4, 5, 6\]"),
        ((30,), 2, r"with grid_axes 2, got \[40, 30\]; reshape them"),
        ((4, 5, 6), 1, r"with grid_axes 1, got \[40, 4, 5, 6\]"),
        ((4, 5), 4, "grid_axes must be 1, 2, 3 or None, got 4"),
    ],
)
def test_grids_that_are_not_clear(shape, grid_axes, message, tmp_path):
    refused(
        tmp_path,
        {"train_images": np.zeros((40, *shape), np.uint8), "train_labels": LABELS},
        message,
        grid_axes=grid_axes,
    )


def refused(tmp_path, arrays, message, **options):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, arrays, **options)
    assert "\n" not in str(error.value)


def test_a_wrong_number_is_named_by_its_row_in_the_file(tmp_path):
    """The error names the row in the file, not the row in the part after a split."""
    images = RNG.normal(size=(60, 6, 5))
    images[21, 3] = np.nan
    with pytest.raises(ValueError, match=r"(train|test) images must be finite .* in example train\[21\]"):
        read(tmp_path, {"train_images": images, "train_labels": np.arange(60) % 2}, grid_axes=2)


def changed(**arrays):
    return {**TWO, **arrays}


HOLE = IMAGES.astype(np.float32)
HOLE[7, 3, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            changed(train_images=HOLE),
            "train images must be finite in float32, got NaN, .* in example 7; replace it, or",
        ),
        (changed(test_images=np.where(np.isnan(HOLE), np.inf, HOLE)), "test images must be finite .* in example 7"),
        (
            changed(train_images=IMAGES * 1e37),
            "train images must be finite in float32, got .* larger number in example 0",
        ),
        (changed(train_images=IMAGES.astype(complex)), "train images must be integers or floats, got complex128"),
        (changed(train_images=IMAGES.astype(str)), "train images must be integers or floats, got <U"),
        (
            changed(train_images=IMAGES.astype(object)),
            "ValueError: Object arrays cannot be loaded when allow_pickle=False",
        ),
        (changed(train_labels=LABELS.astype(object)), "Object arrays cannot be loaded"),
        (
            changed(train_images=IMAGES[:39]),
            r"train arrays must have one entry per example, got images \[39, 6, 5, 3\], ",
        ),
        (changed(train_images=IMAGES[:0], train_labels=LABELS[:0]), "train arrays must have one entry per example"),
        (changed(train_labels=np.int64(3)), r"one entry per example, got images .*, labels \[\]"),
        (changed(test_images=IMAGES[:, :5]), r"test images must be \(6, 5, 3\) as in training, got \(5, 5, 3\)"),
        (changed(test_images=IMAGES.astype(np.float32)), "test images must be uint8 as in training, got float32"),
        (changed(val_images=IMAGES), "must hold val_labels or y_val, got test_images, .*; add it"),
        (changed(val_images=IMAGES[:, :4], val_labels=LABELS), r"validation images must be \(6, 5, 3\) as in training"),
        ({"train_images": IMAGES}, "must hold train_labels or y_train, got train_images"),
        (
            {"test_images": IMAGES, "test_labels": LABELS},
            "must hold train_images or x_train, got test_images, test_labels",
        ),
        ({"images": IMAGES}, "must hold train_images or x_train, got no known array; add it"),
        (changed(x_train=IMAGES), "must hold train_images or x_train, got both; remove one"),
        (
            changed(train_labels=LABELS - 1),
            r"train labels must be from 0 to K - 1, .*, got -1\.\.2; renumber them, or use",
        ),
        (
            changed(train_labels=LABELS * 10**9),
            r"train labels must be from 0 to K - 1, for at most 40 classes, got 0\.\.3000000000",
        ),
        (changed(test_labels=LABELS + 1), "test labels must be of the 4 classes, got 4; correct them"),
        (changed(test_labels=LABELS.astype(str)), None),
        (
            changed(train_labels=LABELS.astype(str)),
            "test labels must be strings as in training, got int64; add the array classes",
        ),
        (
            changed(train_labels=LABELS.astype(str), test_labels=(LABELS + 1).astype(str)),
            "of the 4 classes, got '4'",
        ),
        (changed(train_labels=LABELS * 0, test_labels=LABELS * 0), r"must be of at least two classes, got \('0',\)"),
        (
            changed(train_labels=LABELS / 2),
            r"must be integers or strings, \[N\] or \[N, 1\], got float64 \[40\]; cast them",
        ),
        (
            changed(train_labels=np.eye(40, dtype=int)),
            r"or \[N, 1\], got int64 \[40, 40\]; take the argmax of one-hot labels, or choose the task pixels if",
        ),
        (changed(classes=np.array(["a", "a", "b", "c"])), r"classes must be different strings \[K\], got <U1 \[4\]"),
        (changed(classes=np.arange(4)), r"classes must be different strings \[K\], got int64 \[4\]"),
        (changed(classes=np.array(["a", "b", "c"])), "train labels must be of the 3 classes, got 3"),
        (changed(train_lengths=LENGTHS), "must hold test_lengths or lengths_test"),
        (
            changed(train_lengths=LENGTHS, test_lengths=LENGTHS),
            r"train images must be signals \[N, points, C\] for length or lengths, got \[40, 6, 5, 3\]",
        ),
    ],
)
def test_forged_arrays_are_refused(arrays, message, tmp_path):
    if message is None:
        assert len(read(tmp_path, arrays).test) == 40
    else:
        refused(tmp_path, arrays, message)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (LENGTHS - 1, r"lengths must be integers \[N\] from 1 to 30, got int64 \[40\] from 0 to 29"),
        (LENGTHS + 1, "from 1 to 30, got .* from 2 to 31"),
        (LENGTHS / 1, "must be integers .*, got float64"),
        (LENGTHS[:, None], r"must be integers \[N\] from 1 to 30, got int64 \[40, 1\]"),
        (LENGTHS[:3], "one entry per example"),
    ],
)
def test_lengths_that_are_refused(lengths, message, tmp_path):
    refused(tmp_path, {"train_images": SIGNALS, "train_labels": LABELS, "train_lengths": lengths}, message)


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (LABELS, "tags", r"train labels must be 0 or 1, got 0\.0\.\.3\.0"),
        (np.where(LABELS, np.nan, 1.0), "values", r"must be from -1e\+38 to 1e\+38, got nan"),
        (np.where(LABELS, 1e39, 1.0), "values", r"must be from -1e\+38 to 1e\+38, got 1\.0\.\.1e\+39"),
        (LABELS.astype(str), "values", r"must be numbers \[N, 1\], one for each of the values, got <U21 \[40\]"),
        (np.zeros((40, 2, 2)), "values", "must be numbers"),
        (np.ones(40), "values", "0 must vary between training images, got only 1.0"),
        (LABELS, "boxes", "task must be one of classes, tags, values, pixels, got 'boxes'"),
    ],
)
def test_labels_of_another_task(labels, task, message, tmp_path):
    refused(tmp_path, {"train_images": IMAGES, "train_labels": labels}, message, task=task)


class Forged:
    def __reduce__(self):
        return (exec, ("raise AssertionError('unpickled')",))


def single(path):
    with path.open("wb") as file:
        np.save(file, IMAGES)


def truncated(path):
    np.savez_compressed(path, **TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flipped(path):
    np.savez(path, **TWO)
    whole = bytearray(path.read_bytes())
    whole[500] ^= 1
    path.write_bytes(whole)


def enormous(path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (40, 1000000, 1000000, 1000), }"
    member = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(100)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train_images.npy", member)
        file.writestr("train_labels.npy", member)


def no_array(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train_images.npy", b"text")
        file.writestr("train_labels.npy", b"text")


@pytest.mark.parametrize(
    "forge",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00\xff" * 1000),
        lambda path: path.write_bytes(pickle.dumps(Forged())),
        lambda path: np.savez(path, train_images=np.array([Forged()] * 40), train_labels=LABELS),
        single,
        truncated,
        flipped,
        enormous,
        no_array,
    ],
)
def test_damaged_files_are_refused_in_one_line(forge, tmp_path):
    """Nothing is unpickled."""
    path = tmp_path / "data.npz"
    forge(path)
    with pytest.raises(
        ValueError, match=r"data\.npz must be an \.npz file, or a folder of \.npy files, with numeric"
    ) as e:
        load("arrays", data_dir=path)
    assert "\n" not in str(e.value)
    assert "unpickled" not in str(e.value)


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_dir must be an \.npz file, .* got no such file as .*none"):
        load("arrays", data_dir=tmp_path / "none")
    with pytest.raises(ValueError, match="must hold train_images or x_train, got no known array"):
        load("arrays", data_dir=folder)
    np.save(folder / "train_labels.npy", LABELS)
    for content in (b"", b"text", pickle.dumps(Forged())):
        (folder / "train_images.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"folder must be an \.npz file, or a folder of"):
            load("arrays", data_dir=folder)
    np.save(folder / "train_images.npy", IMAGES)
    whole = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"must be an \.npz file, or a folder of \.npy files"):
        load("arrays", data_dir=folder)


def test_what_is_reported(tmp_path, capsys):
    """One line each reports unknown arrays, copies of training images, and classes without test images."""
    read(
        tmp_path, {**ONE, "test_images": IMAGES[:3], "test_labels": LABELS[:3], "train_length": LENGTHS, "a\n": LENGTHS}
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("data.npz: ignored 2 arrays: a\\n, train_length")
    assert lines[1].endswith("data.npz: 3 test images are copies of training images; remove them")
    assert lines[2].endswith("data.npz: no test images of 3")
    assert len(lines) == 3


def test_a_length_below_one_is_refused(tmp_path):
    refused(
        tmp_path,
        {"train_images": SIGNALS, "train_labels": LABELS},
        "length must be a whole number of at least 1 or None",
        length=0,
    )
    refused(tmp_path, ONE, r"train images must be signals \[N, points, C\] for length or lengths, got", length=5)
