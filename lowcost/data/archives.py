"""Reads the binary archives of CIFAR-10, CIFAR-100 and STL-10 as published, without unpacking them to disk."""

import hashlib
import io
import os
import tarfile
import zlib
from os import PathLike
from typing import NamedTuple

import numpy as np

from lowcost.data.catalogue import Entry
from lowcost.data.dataset import Split


class _Layout(NamedTuple):
    """How an archive stores its images.

    A record is `label_bytes` labels, the last of which is the class, and then an image. Without label bytes, member
    *_y.bin holds the labels of the images in *_X.bin.
    """

    folder: str
    train: list[str]
    test: list[str]
    label_bytes: int = 1
    first_label: int = 0
    axes: str = "CHW"  # of an image, the slowest first


LAYOUTS = {
    "cifar10": _Layout("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": _Layout("cifar-100-binary", ["train.bin"], ["test.bin"], label_bytes=2),  # coarse, fine
    "stl10": _Layout("stl10_binary", ["train_X.bin"], ["test_X.bin"], label_bytes=0, first_label=1, axes="CWH"),
}
PICKLED = (b"cifar-10-batches-py", b"cifar-100-python")
"""The folders in the archives made for Python, which hold pickles."""
TAR_NAME_BYTES = 100


def read_archive(path: str | PathLike[str], entry: Entry) -> tuple[Split, Split]:
    """Returns the labelled images of a published archive, in the archive's order.

    The size and the sha256 of the archive are checked before anything in it is decoded. Nothing is written. Reading
    ends with the last labelled image, so that STL-10's unlabelled images cost nothing when they come last.

    Args:
        path: the archive.
        entry: its entry in the catalogue; of CIFAR-100 the fine labels are read.

    Returns:
        (train, test).

    Raises:
        ValueError: the file is not the published archive, or is damaged.
        OSError: the file cannot be opened; FileNotFoundError if it is missing.
    """
    layout = LAYOUTS[entry.name]
    with open(path, "rb") as file:
        if fault := _fault(file, entry):
            expected = f"must be {entry.filename} as published, got {fault}"
            raise ValueError(f"{os.fspath(path)} {expected}; delete it and get it again from {entry.url}")
        file.seek(0)
        contents = _members(file, layout)
    train = _split(contents, layout.train, entry.train, entry, layout)
    return train, _split(contents, layout.test, entry.test, entry, layout)


def _fault(file: io.BufferedReader, entry: Entry) -> str:
    """Returns how the file differs from the archive of the entry, "" if it does not."""
    start = file.read(2**16)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page"
    if not b"\x1f\x8b".startswith(start[:2]):  # an empty file is reported as cut off
        return f"a file that begins with {start[:16]!r} and is not gzip"
    try:
        folder = zlib.decompressobj(wbits=31).decompress(start, TAR_NAME_BYTES).partition(b"/")[0]
    except zlib.error:
        folder = b""
    if folder in PICKLED:
        return f"the archive for Python, with pickles in {folder.decode()}/"
    size = os.fstat(file.fileno()).st_size
    if size != entry.size:
        return f"a file {'cut off' if size < entry.size else 'too long'}, {size:,} of {entry.size:,} bytes"
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if sha256 == entry.sha256 else f"a damaged one, sha256 {sha256} instead of {entry.sha256}"


def _members(file: io.BufferedReader, layout: _Layout) -> dict[str, bytes]:
    """Returns file name → content. The archive has the right sha256, so that its members need no checks."""
    images = [*layout.train, *layout.test]
    wanted = {f"{layout.folder}/{name}" for name in (*images, *(name.replace("_X", "_y") for name in images))}
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        while len(contents) < len(wanted) and (member := archive.next()):
            if member.name in wanted and (content := archive.extractfile(member)):
                contents[member.name.removeprefix(f"{layout.folder}/")] = content.read()
    return contents


def _split(contents: dict[str, bytes], members: list[str], count: int, entry: Entry, layout: _Layout) -> Split:
    records = np.frombuffer(b"".join(contents[member] for member in members), np.uint8).reshape(count, -1)
    labels, images = np.split(records, [layout.label_bytes], axis=1)
    if not layout.label_bytes:
        labels = np.frombuffer(contents[members[0].replace("_X", "_y")], np.uint8).reshape(count, 1)
    sides = dict(zip("HWC", entry.image_shape, strict=True))
    images = images.reshape(count, *(sides[axis] for axis in layout.axes))
    images = images.transpose(0, *(1 + layout.axes.index(axis) for axis in "HWC"))
    return Split(np.ascontiguousarray(images), labels[:, -1].astype(np.int32) - layout.first_label)
