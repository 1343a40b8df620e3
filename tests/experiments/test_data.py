"""Tests the program that shows a data set and its augmented images."""

import inspect
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common import training
from experiments.common.config import TrainConfig
from experiments.data import DataConfig, augmented, choose, describe, displayed, draw, examples, main, summary
from lowcost.data import Dataset, Split, augment, load


def test_digits_are_described(tmp_path, capsys):
    """Prints counts per class, totals, moments and checksums, and draws a sheet of images."""
    main(DataConfig("digits", out=tmp_path / "digits.png"))
    output = capsys.readouterr().out.replace("\n", "")
    digits = load("digits")
    for name, *counts in summary(digits):
        assert counts == [str(np.sum(split.labels == int(name))) for split in (digits.train, digits.test)]
    assert all(text in output for text in ("1,437", "360", "0.1357", "12 x 12 pixels, 1 channel ", "scikit-learn"))
    with Image.open(tmp_path / "digits.png") as sheet:
        assert min(sheet.size) > 200


def test_names_are_printed_as_text(tmp_path, capsys):
    """Control characters and bytes that are not UTF-8 are escaped in names, paths and errors."""
    root = tmp_path / "data\n\x1b[2J"
    for split in ("train", "test"):
        for name in (b"caf\xe9", b"\x1b[31mred\r\nerror: none"):
            path = os.fsencode(root / split) + b"/" + name
            os.makedirs(path)
            Image.new("RGB", (8, 8)).save(path + b"/0.png")
    main(DataConfig("folder", root, out=tmp_path / "runs\x07" / "folder.png"))
    output = capsys.readouterr().out
    assert all(line.isprintable() for line in output.split("\n"))
    unfolded = re.sub(r"[\s│]", "", output)
    assert all(text in unfolded for text in ("caf\\udce9", "\\x1b[31mred\\r\\nerror:none", "runs\\x07"))
    assert (tmp_path / "runs\x07" / "folder.png").exists()
    with pytest.raises(FileNotFoundError, match="must be a folder, got none") as error:
        main(DataConfig("folder", root / "none", out=tmp_path / "runs" / "sheet.png"))
    assert str(error.value).isprintable()
    with pytest.raises(ValueError, match="8 x 8 pixels, more than max_pixels 63"):
        main(DataConfig("folder", root, out=tmp_path / "other" / "sheet.png", max_pixels=63))


@pytest.mark.parametrize("task", ["classes", "tags", "values"])
def test_a_folder_of_three_parts_is_described(task, tmp_path, capsys):
    """The table gives the images of each class or tag, or the mean and deviation of each value in its unit."""
    rng, lines = np.random.default_rng(0), ["file,red,blue"]
    for i in range(60):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        lines.append(f"{'ab'[i % 2]}/{i}.png,{i % 3 // 2},{i % 2}")
    if task != "classes":
        (tmp_path / "images" / "labels.csv").write_text("\n".join(lines))
    options = {"task": task, "test_share": 0.3, "validation_share": 0.3, "data_dir": tmp_path / "images"}
    main(DataConfig("folder", out=tmp_path / "sheet.png", **options))
    output = capsys.readouterr().out
    dataset = load("folder", data_dir=tmp_path / "images", task=task, test_share=0.3).hold_out(0.3)
    splits = (dataset.train, dataset.validation, dataset.test)
    for i, (name, *cells) in enumerate(summary(dataset)):
        for split, cell in zip(splits, cells, strict=True):
            numbers = [int(file.split("/")[1][:-4]) for file in split.files]
            given = np.array([n % 2 if task == "classes" or i else n % 3 // 2 for n in numbers])
            count = np.sum(given == i) if task == "classes" else np.sum(given)
            assert cell == (f"{given.mean():.4g} ± {given.std():.4g}" if task == "values" else str(count))
        assert re.search(rf"│ {name} +│ +{' +│ +'.join(map(re.escape, cells))} │", output)
    assert describe(dataset)["sha256 of validation images and labels"] == dataset.validation.digest
    rows = dict(examples(dataset))
    assert rows.keys() == set(dataset.classes)
    if task == "values":  # from the smallest to the largest
        found = [np.flatnonzero((dataset.train.images == image).all((1, 2, 3)))[0] for image in rows["red"]]
        assert (np.diff(dataset.train.labels[found, 0]) >= 0).all()
        assert np.ptp(dataset.train.labels[found, 0]) == np.ptp(dataset.train.labels[:, 0])
    assert len(set(choose(dataset.train.labels, 0))) == 8


@pytest.fixture
def pages(monkeypatch):
    """Returns the list of the arrays that are drawn."""
    pages = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, page, **options: pages.append(page))
    return pages


@pytest.mark.parametrize("classes", [3, 45])
def test_the_sheet_shows_every_class(classes, tmp_path, pages):
    """Each class has a row, and a new column begins after twenty classes; a class may have fewer than eight images."""
    labels = np.repeat(np.arange(classes, dtype=np.int32), 2)
    images = np.zeros((len(labels), 4, 6, 3), np.uint8)
    images[..., 0] = 1 + 2 * labels[:, None, None]
    split = Split(images, labels)
    data = Dataset("any", split, split, tuple(map(str, range(classes))), ())
    draw(examples(data), tmp_path / "sheet.png")
    assert len(pages) == -(-classes // 20)
    rows = np.concatenate([page[2::5, :14, 0].reshape(-1, 2, 7) for page in pages])[:classes]
    assert (rows[..., :6] == 1 + 2 * np.arange(classes)[:, None, None]).all()
    assert (rows[..., 6] == 240).all()
    assert (pages[0][:, 14:] == 240).all()


@pytest.mark.parametrize("shape", [(12, 12, 1), (20, 27, 3)])
def test_the_sheet_shows_each_pixel(shape, tmp_path, pages):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, *shape), np.uint8)
    draw([("one", images[0]), ("two\nmirrored", images[1])], tmp_path / "sheet.png")
    (height, width, channels), gap = shape, shape[1] // 12
    tiles = pages[0].reshape(2, height + gap, 8, width + gap, channels)[:, :height, :, :width]
    np.testing.assert_array_equal(tiles.swapaxes(1, 2), images)


def test_the_sheet_of_augmented_images(tmp_path, capsys, monkeypatch):
    """--seed chooses eight images and the random changes; the sheet has one row per function."""
    arguments, drawn = [], []
    monkeypatch.setattr("experiments.data.augmented", lambda *given: arguments.append(given) or [("one", given[0])])
    monkeypatch.setattr("experiments.data.draw", lambda rows, path, **options: drawn.append((rows, path)))
    path = tmp_path / "new" / "digits.png"
    main(DataConfig("digits", augmented=True, seed=3, out=path))
    train = load("digits").train
    ((images, chosen, seed, moments, masked),) = arguments
    assert (moments, masked) == (None, False)
    np.testing.assert_array_equal(chosen, choose(train.labels, 3))
    np.testing.assert_array_equal(images, train.images[chosen])
    assert seed == 3
    assert drawn == [([("one", images)], path)]
    assert capsys.readouterr().out.startswith(f"{path}: training images {chosen[0]}, ")


def test_every_function_changes_the_images():
    """Each function gives another result; the two epochs of alternating_flip are mirror images of each other."""
    images = np.random.default_rng(0).integers(1, 256, (8, 32, 32, 3), np.uint8)
    rows = dict(augmented(images, np.arange(8), 5))
    functions = [name.split("\n")[0] for name in rows]
    public = {name for name, _ in inspect.getmembers(augment, inspect.isfunction) if not name.startswith("_")}
    assert functions[0] == "images"
    assert set(functions[1:]) == public
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
    flipped = augment.random_flip(jax.random.key(5), images)
    np.testing.assert_array_equal(rows["random_flip\nprobability 1/2"], flipped)
    now, then = (rows[f"alternating_flip\nepoch {epoch}"].astype(int) for epoch in (0, 1))
    np.testing.assert_array_equal(now + then, images.astype(int) + images[:, :, ::-1])
    assert 0 < (rows["cutout\npixels=8"] == 0).sum((1, 2, 3)).max() <= 3 * 64


def test_eight_images_of_different_classes():
    labels = np.arange(1000) // 100
    chosen = choose(labels, 0)
    assert len(set(labels[chosen])) == 8
    assert {label for seed in range(9) for label in labels[choose(labels, seed)]} == set(range(10))
    assert set(chosen) != set(choose(labels, 1))
    few = choose(np.arange(20) % 3, 0)
    assert len(set(few)) == 8
    assert set(few[:3] % 3) == {0, 1, 2}
    assert sorted(choose(np.zeros(5, int), 0)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("program", [main, training.run], ids=["data", "train"])
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("folder", "must be a folder, got none"),
        ("cifar10", "cifar-10-binary.tar.gz must be in .* digits needs no file"),
    ],
)
def test_what_is_not_there_ends_in_one_line(program, dataset, message, tmp_path, monkeypatch, capsys):
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "TFDS_DATA_DIR", "LOWCOST_DATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    config = {"dataset": dataset, "data_dir": tmp_path / "none"}
    if program is main:
        with pytest.raises((ValueError, OSError), match=message):
            main(DataConfig(**config, out=tmp_path / "runs" / "sheet.png"))
    else:
        assert program(TrainConfig(**config, workdir=tmp_path / "runs" / "one")) == 2
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


STANDARDISED = ", which the network standardises"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_moments_of_integers_are_shown_in_the_units_of_the_file(dtype):
    """The moments of uint8 are shown after scaling to [0, 1]."""
    info = np.iinfo(dtype)
    images = np.random.default_rng(0).integers(info.min, info.max + 1, (2500, 4, 2)) // np.array([1, 2])
    split = Split(images.astype(dtype), np.arange(2500, dtype=np.int32) % 2)
    facts = describe(Dataset("any", split, split, ("a", "b"), ()))
    values, form, last = (images / 255, ".4f", "") if dtype == "uint8" else (images, ".4g", STANDARDISED)
    assert facts["mean"] == " ".join(f"{x:{form}}" for x in values.mean((0, 1)))
    assert facts["deviation"] == " ".join(f"{x:{form}}" for x in values.std((0, 1)))
    assert facts["numbers"] == f"{dtype}, scaled from {info.min}..{info.max} to 0..1{last}"
    assert facts["signals"] == "4 points, 2 channels"


def save(tmp_path, images, **further):
    labels = np.arange(len(images)) % 3
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, **further)
    return {"dataset": "arrays", "data_dir": tmp_path / "data.npz", "out": tmp_path / "sheet.png"}


def test_signals_of_different_lengths_are_described(tmp_path, capsys):
    """Range and moments are those of the valid points, and only these points are drawn."""
    rng = np.random.default_rng(0)
    signals, lengths = rng.normal(5, 3, (60, 20, 2)), rng.integers(4, 18, 60)
    config = save(tmp_path, signals, lengths_train=lengths)
    main(DataConfig(**config, grid_axes=1))
    dataset = load("arrays", data_dir=config["data_dir"], grid_axes=1)
    facts, output = describe(dataset), capsys.readouterr().out
    assert facts["signals"] == "20 points, 2 channels"
    assert facts["lengths"] == f"{lengths.min()}..{lengths.max()} points, with a mask"
    assert facts["numbers"] == "float32, which the network standardises"
    assert facts["mean"] == " ".join(f"{x:.4g}" for x in dataset.moments[0])
    values = np.concatenate(list(dataset.train.points(masked=True)))
    assert facts["range"] == " ".join(f"{x:.4g}..{y:.4g}" for x, y in zip(values.min(0), values.max(0), strict=True))
    assert all(f"│ {facts[name]} " in output for name in ("signals", "lengths", "range", "mean"))
    for _, shown in displayed(examples(dataset), masked=True):
        assert shown.shape[2] == 2
        assert np.isnan(shown).any()
        assert np.nanmin(shown) >= 0
        assert np.nanmax(shown) <= 1
    main(DataConfig(**config, grid_axes=1, augmented=True))
    assert "training images" in capsys.readouterr().out


@pytest.mark.parametrize("masked", [False, True])
def test_a_sheet_of_signals_has_one_line_per_channel(masked, tmp_path, monkeypatch):
    """Each line fills the height of its cell on a scale that all rows share; padding is left out."""
    lines = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda axes, x, y, **options: lines.append((x, y)))
    signals = np.random.default_rng(0).normal(size=(2, 3, 10, 2 + masked))
    if masked:
        signals[..., 2] = np.arange(10) < 6
    draw([("one", signals[0]), ("two", signals[1])], tmp_path / "sheet.png", masked=masked)
    assert len(lines) == 2
    for channel, (x, y) in enumerate(lines):
        values, points = signals[..., channel], 6 if masked else 10
        x, y = (np.array(numbers).reshape(2, 3, 11) for numbers in (x, y))
        assert np.isnan(y[..., points:]).all()
        np.testing.assert_allclose(
            x[..., :10] - 52 * np.arange(3)[:, None], np.linspace(0, 47, 10)[None, None] + 0 * y[..., :1]
        )
        valid = values[..., :points]
        unit = (valid - valid.min()) / np.ptp(valid)
        np.testing.assert_allclose(y[..., :points] - 28 * np.arange(2)[:, None, None], 23 * (1 - unit))


def test_volumes_are_shown_by_their_central_slices(tmp_path, pages):
    volumes = np.random.default_rng(0).normal(size=(60, 5, 7, 6)).astype(np.float32)
    config = save(tmp_path, volumes)
    main(DataConfig(**config, grid_axes=3))
    dataset = load("arrays", data_dir=config["data_dir"], grid_axes=3)
    assert describe(dataset)["volumes"] == "5 x 7 x 6 points, 1 channel"
    slices = np.concatenate([x[:, 2, :, :, 0] for _, x in examples(dataset)])
    unit = (slices - slices.min()) / np.ptp(slices)
    tiles = pages[0].reshape(3, 8, 8, 7, 1)[:, :7, :, :6, 0].swapaxes(1, 2).reshape(24, 7, 6)
    np.testing.assert_allclose(tiles, 255 * unit, atol=0.51)


@pytest.mark.parametrize("moments", [None, ((3.0, -2.0), (5.0, 0.5))])
@pytest.mark.parametrize("grid", [(12,), (8, 9), (6, 7, 8)], ids=str)
def test_images_of_any_grid_are_augmented(grid, moments):
    """Floats are standardised first, and each function gives another result."""
    units = np.array(moments or ((0, 0), (1, 1)), np.float32)
    images = np.random.default_rng(0).normal(size=(8, *grid, 2)).astype(np.float32)
    rows = dict(augmented(images * units[1] + units[0], np.arange(8), 5, moments))
    np.testing.assert_allclose(rows["images\nas they are"], images, atol=1e-5)
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
    assert {row.shape for row in rows.values()} == {images.shape}


def test_masks_are_augmented_as_in_training():
    """A mask stays 0 or 1, with zeros on the padding, and is neither hidden nor scaled; noise is on values alone."""
    rng = np.random.default_rng(0)
    valid = (np.arange(24) < np.arange(3, 19, 2)[:, None])[..., None].astype(np.float32)
    signals = np.concatenate([valid * rng.normal(5, 3, (8, 24, 2)), valid], -1).astype(np.float32)
    rows = dict(augmented(signals, np.arange(8), 5, ((5.0, 5.0), (3.0, 3.0)), masked=True))
    for name, row in rows.items():
        mask = row[..., 2:]
        assert set(np.unique(mask)) == {0, 1}
        assert (row[..., :2] * (1 - mask) == 0).all()
        assert mask.any(1).all()
        if name.startswith(("images", "cutout", "random_scale", "jitter")):
            np.testing.assert_array_equal(mask, valid)
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
