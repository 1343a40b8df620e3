"""The program that shows what is in a data set, and what augmentation makes of it."""

import inspect
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common import training
from experiments.common.config import TrainConfig
from experiments.data import DataConfig, augmented, choose, describe, draw, examples, main, moments, summary
from lowcost.data import Dataset, Split, augment, load


def test_digits_are_described(tmp_path, capsys):
    """Counts per class, totals, moments, checksums, and a sheet with a row a class."""
    main(DataConfig("digits", out=tmp_path / "digits.png"))
    output = capsys.readouterr().out.replace("\n", "")
    digits = load("digits")
    for name, *counts in summary(digits):
        assert counts == [str(np.sum(split.labels == int(name))) for split in (digits.train, digits.test)]
    assert all(text in output for text in ("1,437", "360", "0.1357", "12 x 12 pixels, 1 channel ", "scikit-learn"))
    with Image.open(tmp_path / "digits.png") as sheet:
        assert min(sheet.size) > 200


def test_names_are_printed_as_text(tmp_path, capsys):
    """Class names and paths with control characters, or bytes that are not UTF-8; an error too is one line."""
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
    """By the number of images of each class or tag, or by the mean and deviation of each value in its unit."""
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
    """The arrays that are drawn."""
    pages = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, page, **options: pages.append(page))
    return pages


@pytest.mark.parametrize("classes", [3, 45])
def test_the_sheet_shows_every_class(classes, tmp_path, pages):
    """Each class in its own colour: a row of eight, a new column after twenty; a class may have few images."""
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
    ((images, chosen, seed),) = arguments
    np.testing.assert_array_equal(chosen, choose(train.labels, 3))
    np.testing.assert_array_equal(images, train.images[chosen])
    assert seed == 3
    assert drawn == [([("one", images)], path)]
    assert capsys.readouterr().out.startswith(f"{path}: training images {chosen[0]}, ")


def test_every_function_changes_the_images():
    """Each in its own way, and the two epochs of alternating_flip are mirror images of each other."""
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


def test_moments_are_those_of_all_images():
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (2500, 2, 3, 3)) // np.array([1, 2, 3])).astype(np.uint8)
    mean, deviation = moments(Split(images, np.zeros(2500, np.int32)))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, (images / 255).std((0, 1, 2)), rtol=1e-12)
