"""Data sets that tensorflow-datasets has prepared before, read without TensorFlow.

Without TensorFlow it can prepare none of ours, but what was prepared as array_record elsewhere can be read.
"""

import importlib.util
import io
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lowcost.data.catalogue import Entry
from lowcost.data.dataset import Split
from lowcost.extras import needs_extra


def find_prepared(entry: Entry, data_dir: str | PathLike[str] | None = None) -> Path | None:
    """The folder <dir>/<name>/<version> that tensorflow-datasets filled with array_record files, not opened yet.

    Its usual format, tfrecord, cannot be read without TensorFlow, and counts as nothing; so does array_record where the
    package of that name is missing, as it may be on systems other than Linux.

    Args:
        entry: the data set.
        data_dir: looked into before $TFDS_DATA_DIR and ~/tensorflow_datasets; None leaves it out.

    Returns:
        The newest version of those in the first directory that has one; None if no directory has.
    """
    if importlib.util.find_spec("array_record") is None:
        return None
    for directory in (data_dir, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"):
        folder = os.path.expanduser(directory or "")
        if not folder or folder.startswith("~"):  # a home directory that is not known
            continue
        # A build in the making has another name. One that is being copied may have this one, but not all its files.
        builds = Path(folder) / entry.name
        versions = [
            build
            for build in (info.parent for info in builds.glob("*/dataset_info.json"))
            if re.fullmatch(r"\d+\.\d+\.\d+", build.name) and any(build.glob("*.array_record*"))
        ]
        if versions:
            return max(versions, key=lambda build: [int(number) for number in build.name.split(".")])
    return None


def read_prepared(folder: Path, entry: Entry) -> tuple[Split, Split]:
    """The images of a data set that tensorflow-datasets has prepared as array_record, in the order of its files.

    Args:
        folder: from `find_prepared`.
        entry: the data set.

    Returns:
        (train, test).

    Raises:
        ValueError: it was prepared, but is damaged or differs from the entry.
    """
    with needs_extra("data"):  # before the try, which takes any error for damage
        import PIL.Image  # noqa: F401
    import tensorflow_datasets as tfds  # here, since the import takes seconds

    try:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
        if "array_record" not in formats:
            raise ValueError(f"expected the file format array_record, got {', '.join(formats)}")
        # tensorflow-datasets would decode the images too, but not without advice to install OpenCV.
        train, test = (
            _read(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}), split, count, entry)
            for split, count in (("train", entry.train), ("test", entry.test))
        )
    except Exception as error:  # what is damaged raises whatever each of its readers has chosen
        hint = 'prepare it again with file_format="array_record", or remove the folder'
        raise ValueError(f"{folder}: cannot be read as {entry.name} ({error!r}); {hint}") from error
    return train, test


def _read(source: Any, split: str, count: int, entry: Entry) -> Split:
    from PIL import Image

    if len(source) != count:
        raise ValueError(f"{split}: expected {count:,} images, got {len(source):,}")
    images, labels = np.empty((count, *entry.image_shape), np.uint8), np.empty(count, np.int32)
    for i, example in enumerate(source):
        with Image.open(io.BytesIO(example["image"])) as picture:
            pixels = np.asarray(picture)
        if pixels.shape != entry.image_shape:  # and uint8 it is: Pillow has three channels of nothing else
            raise ValueError(f"{split} image {i}: expected {list(entry.image_shape)}, got {list(pixels.shape)}")
        images[i], labels[i] = pixels, example["label"]
    if labels.min() < 0 or labels.max() >= len(entry.classes):
        expected = f"labels in 0..{len(entry.classes) - 1}"
        raise ValueError(f"{split}: expected {expected}, got {labels.min()}..{labels.max()}")
    return Split(images, labels)
