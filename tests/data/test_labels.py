"""Tests folders with labels.csv, which holds tags or values of images."""

import csv
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from lowcost.data import folder, load, sources
from lowcost.data.labels import read_labels

HEADER = "file,round,dark\n"


def write(root, text=HEADER + "a.png,0,1\nb/c.png,1,0\nd.png,1,1\n", images=("a.png", "b/c.png", "d.png")):
    """Writes images whose red value is their index, and labels.csv; bytes are written unchanged."""
    for i, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name)
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


@pytest.fixture
def split(tmp_path):
    """Returns a folder with three training images and one test image."""
    write(tmp_path / "train")
    write(tmp_path / "test", HEADER + "a.png,1,0\n", ["a.png"])
    return tmp_path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Writes scikit-learn's digits to one folder per class, once with three tags and once with three values."""
    scans, labels = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)[:300]
    tags = np.stack([labels % 2 == 0, labels >= 5, np.isin(labels, (0, 6, 8, 9))], 1)[:300].astype(int)
    ink = scans.mean((1, 2))
    values = np.stack([ink, 1e6 + 1e-3 * ink, (scans.sum(1) @ np.arange(8)) / scans.sum((1, 2))], 1)
    roots = {}
    for task, names, table in (("tags", "even,at least 5,loop", tags), ("values", "ink,offset,centre", values)):
        roots[task] = tmp_path_factory.mktemp(task)
        lines = [f"file,{names}\n"]
        for i, (scan, label, row) in enumerate(zip(scans, labels, table, strict=False)):
            (roots[task] / str(label)).mkdir(exist_ok=True)
            Image.fromarray((scan * 15).astype(np.uint8)).save(roots[task] / str(label) / f"{i}.png")
            lines.append(f"{label}/{i}.png,{','.join(map(str, row.tolist()))}\n")
        (roots[task] / "labels.csv").write_text("".join(lines))
    return roots, scans, {"tags": tags, "values": values}


@pytest.mark.parametrize("task", ["tags", "values"])
def test_digits_with_several_labels(digits, tmp_path, task):
    """Every image has its own labels, in the split that its file belongs to; values are standardised."""
    roots, scans, tables = digits
    for cache_dir in (None, tmp_path / "cache", tmp_path / "cache"):
        data = load("folder", data_dir=roots[task], task=task, test_share=0.3, cache_dir=cache_dir)
        assert (data.task, len(data.classes), len(data.train) + len(data.test)) == (task, 3, 300)
        rows = {scan.astype(int).tobytes(): row for scan, row in zip(scans, tables[task], strict=True)}
        means, deviations = data.scale or ((0, 0, 0), (1, 1, 1))
        for part in (data.train, data.test):
            assert part.labels.dtype == np.float32
            found = part.labels * np.float64(deviations)[None] + np.float64(means)[None]
            expected = [rows[(image[..., 0] // 15).astype(int).tobytes()] for image in part.images]
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-6)
            for file, image in zip(part.files, part.images, strict=True):
                np.testing.assert_array_equal(np.asarray(Image.open(roots[task] / file)), image[..., 0])
        for path in roots[task].glob("*/*.png"):
            below = int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big") / 2**64 < 0.3
            image = np.asarray(Image.open(path))
            assert (data.test.images[..., 0] == image).all((1, 2)).any() == below
    if task == "values":
        np.testing.assert_allclose(data.train.labels.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(data.train.labels.std(0), 1, rtol=1e-5)
        np.testing.assert_allclose(data.train.labels[:, 0], data.train.labels[:, 1], atol=1e-4)  # float64 until then
    else:
        assert data.scale is None
    assert data.sample(50).hold_out(0.4).task == task


def test_the_splits_have_tables_of_their_own(split):
    write(split / "val", HEADER + "x/y/z.png,0,0\n", ["x/y/z.png"])
    data = folder(split, task="tags")
    assert data.classes == ("round", "dark")
    assert data.train.labels.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.test.labels.tolist() == [[1, 0]]
    assert data.validation.labels.tolist() == [[0, 0]]
    values = folder(split, task="values")
    assert values.scale == ((2 / 3, 2 / 3), (pytest.approx(np.sqrt(2) / 3),) * 2)
    np.testing.assert_allclose(values.test.labels * np.sqrt(2) / 3 + 2 / 3, [[1, 0]], atol=1e-6)
    np.testing.assert_allclose(values.validation.labels * np.sqrt(2) / 3 + 2 / 3, [[0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        HEADER.encode("utf-8-sig") + b"a.png,0,1\r\nb/c.png,1,0\r\nd.png,1,1",
        HEADER + "\nd.png,1.0,1\n\n./b//c.png, 1 ,0e3\na.png,0,1\n\n",
        '"file","round",dark\n"a.png","0","1"\nb/c.png,1,0\nd.png,1,1\n',
    ],
    ids=["BOM and CRLF", "order, blanks and numbers", "quotes"],
)
def test_forms_of_the_same_table(split, text):
    before = folder(split, task="tags").digest
    write(split / "train", text)
    assert folder(split, task="tags").digest == before


NAMES = st.lists(st.text("aé,\"' ;#=λ\x85\u2028", max_size=9), min_size=1, max_size=4, unique=True)


@settings(max_examples=30, deadline=None)
@given(
    names=NAMES,
    files=NAMES,
    data=st.data(),
)
def test_a_table_that_the_csv_module_writes_is_read_as_it_is(names, files, data):
    files = [f"x{name}.png" for name in files]
    number = st.floats(-1e37, 1e37)
    rows = [[name, *data.draw(st.lists(number, min_size=len(names), max_size=len(names)))] for name in files]
    with tempfile.TemporaryDirectory() as root:
        for name in files:
            (Path(root) / name).touch()
        with open(Path(root) / "labels.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file", *(f"n{name}" for name in names)], *rows])
        header, table = read_labels(Path(root), "values")
    assert header == tuple(f"n{name}" for name in names)
    assert table == {os.path.join(root, name): numbers for name, *numbers in rows}
    assert list(table) == sorted(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"labels\.csv must be the header file,NAME,NAME,\.\.\. with different names, got \[\]"),
        (HEADER, r"labels\.csv must have a line per image, got only the header"),
        ("file\na.png\n", r"line 1 must be the header file,NAME,.* got \['file'\]"),
        ("file;round;dark\n", r"line 1 must be the header file,NAME,.* got \['file;round;dark'\]"),
        ("name,round\na.png,1\n", r"line 1 must be the header file,NAME,.* got \['name', 'round'\]"),
        ("file,round,round\n", r"line 1 must be the header file,NAME,.* with different names"),
        ("file,round,\n", r"line 1 must be the header file,NAME,.* got \['file', 'round', ''\]"),
        (HEADER + "a.png,0,1\nd.png,0\n", r"line 3 must have 3 cells as the header, got 2"),
        (HEADER + "\na.png,0,1,1\n", r"line 3 must have 3 cells as the header, got 4"),
        (HEADER + "a.png,0,1\nnone.png,0,1\n", r"line 3: file must be the path of an image in .*, got 'none\.png'"),
        (HEADER + "b,0,1\n", r"line 2: file must be the path of an image in .*, got 'b'"),
        (HEADER + ",0,1\n", r"line 2: file must be the path of an image in .*, got ''"),
        (HEADER + "../test/a.png,0,1\n", r"line 2: file must be .*, got '\.\./test/a\.png'"),
        (HEADER + "b/../a.png,0,1\n", r"line 2: file must be .*, got 'b/\.\./a\.png'"),
        (HEADER + "{root}/a.png,0,1\n", r"line 2: file must be the path of an image in .*, got '/.*/a\.png'"),
        (HEADER + "a\0.png,0,1\n", r"line 2.*(file must be|UTF-8 text)"),
        (HEADER + "x" * 5000 + ",0,1\n", r"line 2: file must be the path of an image"),
        (HEADER + "a.png,0,1\n./a.png,0,1\n", r"line 3: file must be another one in each line, got '\./a\.png' again"),
        (HEADER + "a.png,0,2\n", r"line 2: dark must be 0 or 1, got '2'"),
        (HEADER + "a.png,yes,1\n", r"line 2: round must be 0 or 1, got 'yes'"),
        (HEADER + "a.png,,1\n", r"line 2: round must be 0 or 1, got ''"),
        (HEADER + "a.png,nan,1\n", r"line 2: round must be 0 or 1, got 'nan'"),
        (HEADER + 'a.png,0,1\n"d.png,0,1\n', r"line 3 must be comma-separated UTF-8 text, got unexpected end of data"),
        (HEADER.encode() + b"a.png,0,1\ncaf\xe9.png,0,1\n", r"line 3 must be comma-separated UTF-8 text, got .*0xe9"),
        (HEADER.encode("utf-16"), r"line 1 must be comma-separated UTF-8 text, got .*; save it as such"),
        ("file,a\x1b[2Jb\na.png,3\n", r"line 2: a\\x1b\[2Jb must be 0 or 1, got '3'"),
    ],
)
def test_a_table_with_an_error_is_refused_with_its_line(split, text, message):
    write(split / "train", text.replace("{root}", str(split / "train")) if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message) as error:
        folder(split, task="tags")
    assert str(error.value).startswith(str(split / "train" / "labels.csv"))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "1e39", "-1e38", "3;5", "", "x", "0x10"])
def test_values_must_be_finite_numbers(split, cell):
    write(split / "train", HEADER + f"a.png,0,1\nd.png,{cell},3\n")
    with pytest.raises(ValueError, match=rf"line 3: round must be a number from -1e\+38 to 1e\+38, got '{cell}'"):
        folder(split, task="values")


def test_a_constant_value_is_refused(split):
    write(split / "train", HEADER + "a.png,0,0.1\nb/c.png,1,0.1\nd.png,1,0.1\n")
    with pytest.raises(ValueError, match=r"^dark must vary between training images, got only 0\.1; remove the column"):
        folder(split, task="values")
    assert folder(write(split / "train").parent, task="values").task == "values"


def test_the_names_must_agree(split):
    write(split / "test", "file,dark,round\na.png,1,0\n", ["a.png"])
    with pytest.raises(ValueError, match=r"test/labels\.csv must have the names of train, \('round', 'dark'\), got"):
        folder(split, task="tags")


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_a_missing_table_is_described(tmp_path, part):
    for name in (part and "train", part and "test"):
        write(tmp_path / name)
    (tmp_path / part / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.csv must be a file with the header file,NAME,.*, got none;"):
        folder(tmp_path, task="tags")


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_a_table_without_its_task_is_refused(tmp_path, part):
    for name in ("cat/a.png", "dog/b.png"):
        for inside in {part and "train", part}:
            write(tmp_path / inside / name, images=["a.png"])
            (tmp_path / inside / name / "labels.csv").unlink()
    (tmp_path / part / "labels.csv").write_text(HEADER)
    with pytest.raises(ValueError, match=r"task must be tags or values for .*labels\.csv, got classes; choose one, or"):
        folder(tmp_path)


def test_a_task_must_be_known_and_is_for_folders_and_arrays(tmp_path):
    with pytest.raises(ValueError, match="task must be one of classes, tags, values, pixels, got 'boxes'"):
        folder(tmp_path, task="boxes")
    for name in set(sources.SOURCES) - {"folder", "arrays"}:
        with pytest.raises(
            ValueError, match=f"task must be classes for {name}, got tags; only folder, arrays can have it"
        ):
            load(name, task="tags")


def test_images_without_a_line_are_counted(split, capsys):
    """Other files are counted too, but not the table; circular links are not followed."""
    for name in ("new.png", "b/new.png", "e/f/new.png", "b/notes.txt", ".hidden", "other.csv"):
        write(split / "aside", images=["a.png"])
        (split / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (split / "aside" / "a.png").rename(split / "train" / name)
    (split / "train" / "loop").symlink_to("..")
    assert len(folder(split, task="tags").train) == 3
    beside, inside = capsys.readouterr().err.splitlines()[:2]
    assert beside == f"{split}: ignored 1 entries: 1 folders beside train"
    head, kinds = inside.split(" entries: ")
    assert head == f"{split / 'train'}: ignored 6"
    assert sorted(kinds.split(", ")) == ["1 .csv", "1 .txt", "1 hidden", "3 images without a line in labels.csv"]


def test_tags_that_no_image_has_are_named(split, capsys):
    write(split / "train", HEADER + "a.png,0,1\n")
    folder(split, task="tags")
    lines = capsys.readouterr().err.splitlines()
    assert f"warning: {split}: no train images of round" in lines
    assert f"warning: {split}: no test images of dark" in lines
    assert len(lines) == 4  # the others report images without a line, and copies


def test_a_relative_folder_and_one_behind_a_link(split, monkeypatch, capsys):
    (split / "elsewhere").mkdir()
    (split / "train" / "b").rename(split / "elsewhere" / "b")
    (split / "train" / "b").symlink_to(split / "elsewhere" / "b")
    known = folder(split, task="tags").digest
    monkeypatch.chdir(split / "train")
    assert len(read_labels(Path(), "tags")[1]) == 3
    monkeypatch.chdir(split)
    capsys.readouterr()
    relative = folder(".", task="tags", cache_dir="cache")
    assert (relative.digest, relative.train.files) == (known, ("train/a.png", "train/b/c.png", "train/d.png"))
    assert "without a line" not in capsys.readouterr().err
