"""Tests the published binary archives: what is read from them, and how each kind of damage is refused."""

import dataclasses
import functools
import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from lowcost.data.archives import read_archive
from lowcost.data.catalogue import ENTRIES

NAMES = tuple(ENTRIES)
MEMBERS = {  # name → (training images, training labels, test images, test labels)
    "cifar10": ([f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)],) * 2 + (["test_batch.bin"],) * 2,
    "cifar100": (["train.bin"],) * 2 + (["test.bin"],) * 2,
    "stl10": (["train_X.bin"], ["train_y.bin"], ["test_X.bin"], ["test_y.bin"]),
}
FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary", "stl10": "stl10_binary"}
FIRST = {"cifar10": "data_batch_1.bin", "cifar100": "train.bin", "stl10": "train_X.bin"}
TRAIN, TEST = 20, 3


@functools.cache
def truth(name, shape):
    """Returns random images and labels of both splits, which include the first and the last class."""
    rng = np.random.default_rng(7)
    classes = len(ENTRIES[name].classes)
    splits = []
    for count in (TRAIN, TEST):
        labels = rng.integers(classes, size=count)
        labels[:2] = 0, classes - 1
        splits.append((rng.integers(256, size=(count, *shape), dtype=np.uint8), labels))
    return splits


@functools.cache
def contents(name, shape):
    """Returns member → bytes, written pixel by pixel as the authors describe their formats."""
    height, width, channels = shape
    members = {}
    for i, (images, labels) in enumerate(truth(name, shape)):
        image_members, label_members = MEMBERS[name][2 * i : 2 * i + 2]
        share = len(labels) // len(image_members)
        for n, label in enumerate(labels.tolist()):
            pixels = images[n].tolist()
            image = members.setdefault(f"{FOLDERS[name]}/{image_members[n // share]}", bytearray())
            if name == "stl10":
                members.setdefault(f"{FOLDERS[name]}/{label_members[n // share]}", bytearray()).append(label + 1)
                for channel in range(channels):
                    for column in range(width):
                        for row in range(height):
                            image.append(pixels[row][column][channel])
            else:
                image.extend([label] if name == "cifar10" else [label % 20, label])
                for channel in range(channels):
                    for row in range(height):
                        for column in range(width):
                            image.append(pixels[row][column][channel])
    return {member: bytes(content) for member, content in members.items()}


def tiny(name):
    """Returns an archive's members on a grid so small that packing takes no time."""
    return dict(contents(name, (5, 4, 3)))


def member(name, **header):
    info = tarfile.TarInfo(name)
    for field, value in header.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def packed(members):
    """Returns a tar of name → content; content that is already a header (TarInfo.tobuf) is used as it is."""
    blocks = []
    for name, content in members.items():
        header = content if content[257:262] == b"ustar" else member(name, size=len(content)) + content
        blocks.append(header + bytes(-len(header) % 512))
    return b"".join(blocks) + bytes(10240)


def zipped(tar, level=1):
    return gzip.compress(tar, level, mtime=0)


def entry_for(name, archive, shape=(5, 4, 3)):
    digest = hashlib.sha256(archive).hexdigest()
    changes = {"size": len(archive), "sha256": digest, "train": TRAIN, "test": TEST, "image_shape": shape}
    return dataclasses.replace(ENTRIES[name], **changes)


def read(folder, archive, entry):
    path = folder / entry.filename
    path.write_bytes(archive)
    return read_archive(path, entry)


def refused(folder, archive, entry, reason):
    """Checks that the error states the reason and the remedy in one line, and that the folder is unchanged."""
    with pytest.raises(ValueError, match=reason) as caught:
        read(folder, archive, entry)
    message = str(caught.value)
    assert message.startswith(f"{folder / entry.filename} must be {entry.filename} as published, got ")
    assert message.endswith(f"; delete it and get it again from {entry.url}")
    assert "\n" not in message
    (file,) = folder.iterdir()
    assert file.name == entry.filename
    assert file.read_bytes() == archive
    return message


def assert_read(splits, name, shape):
    for split, (images, labels) in zip(splits, truth(name, shape), strict=True):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int32


@pytest.mark.parametrize("true_size", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_and_label_is_where_the_format_puts_it(tmp_path, name, true_size):
    shape = ENTRIES[name].image_shape if true_size else (5, 4, 3)  # height and width must not be mixed up
    archive = zipped(packed(contents(name, shape)))
    assert_read(read(tmp_path, archive, entry_for(name, archive, shape)), name, shape)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", NAMES)
def test_order_folders_and_further_files_do_not_matter(tmp_path, name, format):
    """Unlabelled images at the start do not matter either; a path may be a string."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=format) as tar:
        folder = tarfile.TarInfo(FOLDERS[name])
        folder.type = tarfile.DIRTYPE
        folder.pax_headers = {"comment": "é"}
        tar.addfile(folder)
        unlabelled, text, elsewhere = f"{FOLDERS[name]}/unlabeled_X.bin", f"{FOLDERS[name]}/read.me", FIRST[name]
        others = {unlabelled: bytes(2_000_000), text: b"a", elsewhere: b"not in the folder", "empty": b""}
        for key, content in {**others, **dict(reversed(tiny(name).items()))}.items():
            info = tarfile.TarInfo(key)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    archive = buffer.getvalue()
    entry = entry_for(name, archive)
    (tmp_path / entry.filename).write_bytes(archive)
    assert_read(read_archive(str(tmp_path / entry.filename), entry), name, (5, 4, 3))
    assert [path.name for path in tmp_path.iterdir()] == [entry.filename]


def test_unlabelled_images_at_the_end_are_not_read(tmp_path):
    """Reading succeeds although the file is cut off within these images."""
    unlabelled = {"stl10_binary/unlabeled_X.bin": member("stl10_binary/unlabeled_X.bin", size=2**30)}
    archive = zipped(packed(tiny("stl10") | unlabelled))[:-20]
    assert_read(read(tmp_path, archive, entry_for("stl10", archive)), "stl10", (5, 4, 3))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_archive(tmp_path / "nowhere", ENTRIES["cifar10"])


PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda whole: b"", r"cut off, 0 of [\d,]{4,} bytes"),
        (lambda whole: whole[:1], r"cut off, 1 of [\d,]{4,} bytes"),
        (lambda whole: whole[:2], r"cut off, 2 of [\d,]{4,} bytes"),
        (lambda whole: whole[:15], r"cut off, 15 of [\d,]{4,} bytes"),
        (lambda whole: whole[: len(whole) // 2], r"cut off, [\d,]+ of [\d,]{4,} bytes"),
        (lambda whole: whole[:-1], r"cut off, [\d,]+ of [\d,]{4,} bytes"),
        (lambda whole: whole + b"\0", r"too long, [\d,]+ of [\d,]{4,} bytes"),
        (lambda whole: flipped(whole, 4), "a damaged one, sha256 .* instead of "),
        (lambda whole: flipped(whole, len(whole) // 2), "a damaged one, sha256 .* instead of "),
        (lambda whole: flipped(whole, len(whole) - 1), "a damaged one, sha256 .* instead of "),
        (lambda whole: bytes(len(whole)), r"begins with b'.*' and is not gzip"),
        (lambda whole: b"PK\x03\x04", r"begins with b'PK\\x03\\x04' and is not gzip"),
        (lambda whole: PAGE, "a web page"),
        (lambda whole: b"\xef\xbb\xbf\n <html>", "a web page"),
        (lambda whole: PAGE + bytes(len(whole) - len(PAGE)), "a web page"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_the_published_one(tmp_path, name, spoil, reason):
    """Nothing in it is decoded, and the error gives the most specific reason."""
    whole = zipped(packed(tiny(name)))
    archive = spoil(whole)
    assert archive != whole
    message = refused(tmp_path, archive, entry_for(name, whole), reason)
    if " bytes;" in message:
        assert f" {len(archive):,} of {len(whole):,} bytes" in message


def flipped(whole, place):
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("with_folder", [True, False])
@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [("cifar10", "cifar-10-batches-py", "data_batch_4"), ("cifar100", "cifar-100-python", "train")],
)
def test_the_archive_for_python_is_recognised(tmp_path, name, folder, file, with_folder, same_size):
    """Its folder name identifies it under the name of the binary archive and with any size; nothing is unpickled."""
    trap = pickle.dumps(Trap())
    directory = member(f"{folder}/", type=tarfile.DIRTYPE)
    noise = np.random.default_rng(0).bytes(2000)
    members = {folder: directory} if with_folder else {}
    archive = zipped(packed(members | {f"{folder}/{file}": trap + noise}))
    entry = entry_for(name, archive if same_size else b"another")
    entry = dataclasses.replace(entry, sha256="0" * 64)
    refused(tmp_path, archive, entry, rf"the archive for Python, with pickles in {folder}/; delete")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)
