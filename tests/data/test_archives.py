"""The published binary archives: what is read from them, and how each damage is refused."""

import dataclasses
import functools
import gzip
import hashlib
import io
import math
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
    """Random images and labels of both splits; the first and the last class are among them."""
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
    """Member → bytes, written pixel by pixel as the authors describe their formats."""
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
    """An archive's members on a grid so small that packing it takes no time."""
    return dict(contents(name, (5, 4, 3)))


def member(name, **header):
    info = tarfile.TarInfo(name)
    for field, value in header.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def packed(members):
    """A tar of name → content; content that is a header already (TarInfo.tobuf) is taken as it is."""
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
    """Reading says why and what to do, in one line, and leaves the folder as it was."""
    with pytest.raises(ValueError, match=reason) as caught:
        read(folder, archive, entry)
    message = str(caught.value)
    assert message.startswith(f"{folder / entry.filename}: ")
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
    """Least of all the unlabelled images, if they come first; a path may be a string."""
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
    """Whatever stands there: here the file breaks off."""
    unlabelled = {"stl10_binary/unlabeled_X.bin": member("stl10_binary/unlabeled_X.bin", size=2**30)}
    archive = zipped(packed(tiny("stl10") | unlabelled))[:-20]
    assert_read(read(tmp_path, archive, entry_for("stl10", archive)), "stl10", (5, 4, 3))
    refused(tmp_path, early := zipped(packed(unlabelled | tiny("stl10"))), entry_for("stl10", early), "end of data")


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
        (lambda whole: flipped(whole, 4), "damaged, expected sha256 .*, got "),
        (lambda whole: flipped(whole, len(whole) // 2), "damaged, expected sha256 .*, got "),
        (lambda whole: flipped(whole, len(whole) - 1), "damaged, expected sha256 .*, got "),
        (lambda whole: bytes(len(whole)), "expected a gzip file, got one that begins with"),
        (lambda whole: b"PK\x03\x04", r"expected a gzip file, got one that begins with b'PK\\x03\\x04'"),
        (lambda whole: PAGE, "this is a web page and not the archive"),
        (lambda whole: b"\xef\xbb\xbf\n <html>", "this is a web page and not the archive"),
        (lambda whole: PAGE + bytes(len(whole) - len(PAGE)), "this is a web page and not the archive"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_the_published_one(tmp_path, name, spoil, reason):
    """Nothing in it is decoded, and the reason is the most telling one."""
    whole = zipped(packed(tiny(name)))
    archive = spoil(whole)
    assert archive != whole
    message = refused(tmp_path, archive, entry_for(name, whole), reason)
    if " of " in message:
        assert f" {len(archive):,} of {len(whole):,} bytes" in message


def flipped(whole, place):
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


@pytest.mark.parametrize("cut", [None, 400])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("with_folder", [True, False])
@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [("cifar10", "cifar-10-batches-py", "data_batch_4"), ("cifar100", "cifar-100-python", "train")],
)
def test_the_archive_for_python_is_recognised(tmp_path, name, folder, file, with_folder, same_size, cut):
    """Even under the name of the right one, of its size, or cut off; nothing is unpickled."""
    trap = pickle.dumps(Trap())
    directory = member(f"{folder}/", type=tarfile.DIRTYPE)
    noise = np.random.default_rng(0).bytes(2000)
    members = {folder: directory} if with_folder else {}
    archive = zipped(packed(members | {f"{folder}/{file}": trap + noise}))[:cut]
    entry = entry_for(name, archive if same_size else b"another")
    entry = dataclasses.replace(entry, sha256="0" * 64)
    refused(tmp_path, archive, entry, rf"archive for Python, .* {folder}/, expected {entry.filename}; delete")


@pytest.mark.parametrize("size", [2**60, 2**80, -512])
@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_damaged_file_may_begin_with_anything(tmp_path, type, size):
    """Its first member is looked at for a better reason; where that fails the checksum stays the reason."""
    archive = zipped(packed({"any": member("any", type=type, size=size)} | tiny("cifar10")))
    entry = dataclasses.replace(entry_for("cifar10", archive), sha256="0" * 64)
    refused(tmp_path, archive, entry, "damaged, expected sha256 0+, got")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


LONG_NAMES = (member("long", size=1, type=tarfile.GNUTYPE_LONGNAME) + b"a" + bytes(511)) * 2000  # each of the next


def with_member(header):
    return lambda members, first: {**members, "last": header}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda members, first: {key: members[key] for key in members if key != first}, "expected a member '{first}'"),
        (lambda members, first: {}, "expected a member '"),
        (lambda members, first: {f"./{key}": content for key, content in members.items()}, "expected a member '"),
        (lambda members, first: members | {first: b""}, r"{first}: expected \d+ records of \d+ bytes, got 0 bytes"),
        (lambda members, first: members | {first: members[first][:-1]}, r"{first}: expected \d+ records of \d+ bytes"),
        (lambda members, first: members | {first: members[first] + b"\0"}, r"{first}: expected \d+ records of \d+"),
        (
            lambda members, first: members | {first: member(first, size=2**60)},
            "{first}: .* got 1,152,921,504,606,846,976",
        ),
        (lambda members, first: members | {first: member(first, size=-512)}, "{first}: .* got -512 bytes"),
        (with_member(member("large", size=2**60)), "cannot be unpacked, unexpected end of data"),
        (
            lambda members, first: {"large": member("large", size=2**60), **members},
            "cannot be unpacked, unexpected end of data",
        ),
        (lambda members, first: {"x": member("x", size=2**60, type=tarfile.XHDTYPE), **members}, "cannot be unpacked"),
        (
            lambda members, first: {"x": member("x", size=2**60, type=tarfile.GNUTYPE_LONGNAME), **members},
            "cannot be unpacked",
        ),
        (with_member(LONG_NAMES), "cannot be unpacked, maximum recursion"),
        (with_member(member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "got 'link', a link, device"),
        (with_member(member("link", type=tarfile.LNKTYPE, linkname="other")), "got 'link', a link, device"),
        (with_member(member("null", type=tarfile.CHRTYPE)), "got 'null', a link, device"),
        (with_member(member("disk", type=tarfile.BLKTYPE)), "got 'disk', a link, device"),
        (with_member(member("pipe", type=tarfile.FIFOTYPE)), "got 'pipe', a link, device"),
        (with_member(member("sparse", type=tarfile.GNUTYPE_SPARSE)), "got 'sparse', a link, device"),
        (lambda members, first: members | {first: member(first, type=tarfile.SYMTYPE)}, "got '{first}', a link"),
        (with_member(member("../out")), r"expected names inside .*, got '\.\./out'"),
        (with_member(member("a/../../out")), r"expected names inside .*, got 'a/\.\./\.\./out'"),
        (with_member(member("..", type=tarfile.DIRTYPE)), r"expected names inside .*, got '\.\.'"),
        (with_member(member("/etc/passwd")), "expected names inside .*, got '/etc/passwd'"),
        (with_member(member("//tmp", type=tarfile.DIRTYPE)), "expected names inside .*, got '//tmp'"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_content_under_a_right_checksum(tmp_path, name, change, reason):
    first = f"{FOLDERS[name]}/{FIRST[name]}"
    archive = zipped(packed(change(tiny(name), first)))
    refused(tmp_path, archive, entry_for(name, archive), reason.format(first=first))


@pytest.mark.parametrize(
    ("name", "file", "place", "label", "reason"),
    [
        ("cifar10", "data_batch_5.bin", 0, 10, r"labels 0\.\.9, got \d\.\.10"),
        ("cifar10", "test_batch.bin", -61, 255, r"labels 0\.\.9, got \d\.\.255"),
        ("cifar100", "train.bin", 1, 100, r"labels 0\.\.99, got \d+\.\.100"),
        ("stl10", "train_y.bin", 5, 0, r"labels 1\.\.10, got 0\.\.10"),
        ("stl10", "test_y.bin", -1, 11, r"labels 1\.\.10, got 1\.\.11"),
    ],
)
def test_a_label_out_of_range(tmp_path, name, file, place, label, reason):
    members = tiny(name)
    content = bytearray(members[f"{FOLDERS[name]}/{file}"])
    content[place] = label
    archive = zipped(packed(members | {f"{FOLDERS[name]}/{file}": bytes(content)}))
    refused(tmp_path, archive, entry_for(name, archive), f"{FOLDERS[name]}/{file}: expected {reason}")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_gzip_stream_under_a_right_checksum(tmp_path, name):
    """Wherever it is damaged: in gzip's header, its blocks, a pixel that still decodes, its own checksum; or cut."""
    whole = zipped(packed(tiny(name)), level=0)
    damages = [flipped(whole, place) for place in (2, 10, 11, 5000, len(whole) - 8, len(whole) - 1)]
    damages += [whole[:size] for size in (2, 9, 10, 300, 5000, len(whole) - 8, len(whole) - 1)]
    damages += [whole + b"garbage", zipped(b""), zipped(b"text"), zipped(bytes(1024)), zipped(whole)]
    for archive in damages:
        refused(tmp_path, archive, entry_for(name, archive), "cannot be unpacked, |expected a member")


def test_random_damage_under_a_right_checksum(tmp_path):
    """What a tar of random faults raises is a ValueError as well, if it can be read at all no pixel is lost."""
    rng = np.random.default_rng(0)
    whole = packed(tiny("cifar100"))
    headers = math.ceil(len(tiny("cifar100")["cifar-100-binary/train.bin"]) / 512) * 512 + 512
    outcomes = set()
    for _ in range(300):
        tar = bytearray(whole)
        for place in rng.integers(512, size=3):
            tar[rng.choice([0, headers]) + place] = rng.integers(256)
        for start in (0, headers):  # a header with a right sum, so that what is in it is believed
            tar[start + 148 : start + 156] = b" " * 8
            tar[start + 148 : start + 156] = b"%06o\0 " % sum(tar[start : start + 512])
        archive = zipped(bytes(tar))
        try:
            splits = read(tmp_path, archive, entry_for("cifar100", archive))
        except ValueError as error:
            outcomes.add(str(error).partition(": ")[2][:12])
        else:
            assert_read(splits, "cifar100", (5, 4, 3))
            outcomes.add("read")
    assert len(outcomes) > 2
