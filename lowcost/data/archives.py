"""The binary archives of CIFAR-10, CIFAR-100 and STL-10, read as they were published: streamed, nothing unpacked."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from contextlib import suppress
from os import PathLike
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowcost.data.catalogue import Entry
from lowcost.data.dataset import Split


class _Layout(NamedTuple):
    """How an archive stores its images: for each split the pairs of members that hold (images, labels).

    Where both are one member, each of its records is the label bytes and then the image.
    """

    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    label_bytes: int = 1  # a record; the last of them is the class
    first_label: int = 0
    axes: str = "CHW"  # of an image, the slowest first
    unlabelled: str = ""  # a large member that nothing wanted follows, once all that is wanted has come


LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-bin",
        train=tuple((f"data_batch_{i}.bin",) * 2 for i in range(1, 6)),
        test=(("test_batch.bin",) * 2,),
    ),
    "cifar100": _Layout(
        folder="cifar-100-binary",
        train=(("train.bin",) * 2,),
        test=(("test.bin",) * 2,),
        label_bytes=2,  # coarse, fine
    ),
    "stl10": _Layout(
        folder="stl10_binary",
        train=(("train_X.bin", "train_y.bin"),),
        test=(("test_X.bin", "test_y.bin"),),
        first_label=1,
        axes="CWH",
        unlabelled="unlabeled_X.bin",
    ),
}
PICKLED = ("cifar-10-batches-py", "cifar-100-python")  # the folders inside the archives made for Python
CHUNK = 2**20
# What gzip and tarfile raise on damaged archives.
UNREADABLE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError, RecursionError)


def read_archive(path: str | PathLike[str], entry: Entry) -> tuple[Split, Split]:
    """The labelled images of a published archive: training and test split, in the archive's order.

    The archive must be the published one, byte by byte: its size and checksum are compared before anything in it is
    decoded. Nothing is written, and of STL-10 the unlabelled images are not read where they come last.

    Args:
        path: the archive.
        entry: which one it is: "cifar10", "cifar100" (whose fine labels are taken) or "stl10".

    Returns:
        (train, test).

    Raises:
        ValueError: it is not the published archive, or is damaged; the message says in what way and what to do.
        OSError: the file cannot be opened, as FileNotFoundError if it is missing.
    """
    with open(path, "rb") as file:
        try:
            _check_identity(file, entry)
            file.seek(0)
            return _read_members(file, entry, LAYOUTS[entry.name])
        except UNREADABLE as error:
            reason = error if isinstance(error, ValueError) else f"cannot be unpacked, {error}"
            raise ValueError(f"{os.fspath(path)}: {reason}; delete it and get it again from {entry.url}") from error


def _check_identity(file: io.BufferedReader, entry: Entry) -> None:
    """Raises ValueError unless this is the archive that the entry describes, with the reason that helps most."""
    start = file.read(CHUNK)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError("this is a web page and not the archive")
    if not b"\x1f\x8b".startswith(start[:2]):  # an empty file, or of one byte, is reported as cut off
        raise ValueError(f"expected a gzip file, got one that begins with {start[:16]!r}")

    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    if size != entry.size:
        reason = f"{'cut off' if size < entry.size else 'too long'}, {size:,} of {entry.size:,} bytes"
    elif (sha256 := hashlib.file_digest(file, "sha256").hexdigest()) != entry.sha256:
        reason = f"damaged, expected sha256 {entry.sha256}, got {sha256}"
    else:
        return
    if (folder := _first_folder(start)) in PICKLED:
        reason = f"this is the archive for Python, with pickled files in {folder}/, expected {entry.filename}"
    raise ValueError(reason)


def _first_folder(start: bytes) -> str:
    """The folder of the first member as the file's first bytes tell, "" if they tell nothing; they may be anything."""
    with suppress(*UNREADABLE):
        unpacked = zlib.decompressobj(wbits=31).decompress(start, CHUNK)
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            if member := archive.next():
                return member.name.split("/")[0]
    return ""


def _read_members(file: io.BufferedReader, entry: Entry, layout: _Layout) -> tuple[Split, Split]:
    splits = []
    wanted: dict[str, dict[str, NDArray]] = {}  # member → field of its records → where that goes
    for pairs, count in ((layout.train, entry.train), (layout.test, entry.test)):
        split = Split(np.empty((count, *entry.image_shape), np.uint8), np.empty(count, np.int32))
        splits.append(split)
        parts = zip(pairs, np.split(split.images, len(pairs)), np.split(split.labels, len(pairs)), strict=True)
        for (images_member, labels_member), images, labels in parts:
            wanted.setdefault(f"{layout.folder}/{labels_member}", {})["label"] = labels
            wanted.setdefault(f"{layout.folder}/{images_member}", {})["image"] = images

    # gzip and not tarfile decompresses, since tarfile's own stream passes over gzip's checksum.
    with gzip.open(file) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"expected names inside {layout.folder}/, got {member.name!r}")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"expected files and folders alone, got {member.name!r}, a link, device or the like")
            if not wanted and member.name == f"{layout.folder}/{layout.unlabelled}":
                break
            content = archive.extractfile(member)
            assert content is not None  # since it is a file
            if member.name in wanted:
                _fill(wanted.pop(member.name), member, content, entry, layout)
            else:
                _read_on(content)
        else:
            _read_on(unzipped)  # to the end, where gzip's checksum stands
    if wanted:
        raise ValueError(f"expected a member {min(wanted)!r}, found none")
    train, test = splits
    return train, test


def _read_on(content: IO[bytes] | gzip.GzipFile) -> None:
    """To the end of what is there: tarfile's own way on would count up to whatever size a header claims."""
    while content.read(CHUNK):
        pass


def _fill(
    fields: dict[str, NDArray], member: tarfile.TarInfo, content: IO[bytes], entry: Entry, layout: _Layout
) -> None:
    """Decodes a member, records of these fields in this order, into the arrays given for them."""
    sides = dict(zip("HWC", entry.image_shape, strict=True))
    shapes = {"label": (layout.label_bytes,), "image": tuple(sides[axis] for axis in layout.axes)}
    record = np.dtype([(field, np.uint8, shapes[field]) for field in fields])
    count = len(next(iter(fields.values())))
    if member.size != count * record.itemsize:
        raise ValueError(
            f"{member.name}: expected {count:,} records of {record.itemsize:,} bytes, got {member.size:,} bytes"
        )
    records = np.frombuffer(content.read(), record)
    if "image" in fields:
        fields["image"][:] = records["image"].transpose(0, *(1 + layout.axes.index(axis) for axis in "HWC"))
    if "label" in fields:
        labels = records["label"][:, -1].astype(np.int32)
        first, last = layout.first_label, layout.first_label + len(entry.classes) - 1
        if labels.min() < first or labels.max() > last:
            raise ValueError(f"{member.name}: expected labels {first}..{last}, got {labels.min()}..{labels.max()}")
        fields["label"][:] = labels - first
