"""Reads data sets that tensorflow-datasets has prepared as array_record, without TensorFlow.

Without TensorFlow, tensorflow-datasets cannot prepare the data sets of the catalogue, but it can read them.
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
    """Returns the folder <dir>/<name>/<version> with array_record files that tensorflow-datasets has prepared.

    The usual format, tfrecord, is ignored, since reading it needs TensorFlow. Without the package array_record, which
    some systems lack, there is nothing to read either.

    Args:
        entry: the data set.
        data_dir: searched before $TFDS_DATA_DIR and ~/tensorflow_datasets; None leaves it out.

    Returns:
        The newest version in the first directory that has one, or None.
    """
    if importlib.util.find_spec("array_record") is None:
        return None
    for directory in (data_dir, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"):
        folder = os.path.expanduser(directory or "")
        if not folder or folder.startswith("~"):  # the home directory is unknown
            continue
        # An unfinished build has another name, but an unfinished copy may lack files.
        builds = [info.parent for info in (Path(folder) / entry.name).glob("*/dataset_info.json")]
        finished = [build for build in builds if re.fullmatch(r"\d+\.\d+\.\d+", build.name)]
        versions = [build for build in finished if any(build.glob("*.array_record*"))]
        if versions:
            return max(versions, key=lambda build: [int(number) for number in build.name.split(".")])
    return None


def read_prepared(folder: Path, entry: Entry) -> tuple[Split, Split]:
    """Returns the images of a prepared data set in the order of its files.

    Args:
        folder: from `find_prepared`.
        entry: the data set.

    Returns:
        (train, test).

    Raises:
        ValueError: the files are damaged or differ from the entry.
        ImportError: pillow is missing.
    """
    with needs_extra("data"):  # before the try, which takes any error for damage
        import PIL.Image  # noqa: F401
    import tensorflow_datasets as tfds  # here, since the import takes seconds

    try:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
        if "array_record" not in formats:
            raise ValueError(f"the file format must be array_record, got {', '.join(formats)}")
        decoders = {"image": tfds.decode.SkipDecoding()}  # its own decoding would print advice to install OpenCV
        train = _read(builder.as_data_source("train", decoders=decoders), "train", entry.train, entry)
        test = _read(builder.as_data_source("test", decoders=decoders), "test", entry.test, entry)
    except Exception as error:  # damaged files raise errors of many types
        remedy = 'prepare it again with file_format="array_record", or remove the folder'
        raise ValueError(f"{folder} must hold {entry.name}, got {error!r}; {remedy}") from error
    return train, test


def _read(source: Any, split: str, count: int, entry: Entry) -> Split:
    from PIL import Image

    if len(source) != count:
        raise ValueError(f"{split} must have {count:,} images, got {len(source):,}")
    images, labels = np.empty((count, *entry.image_shape), np.uint8), np.empty(count, np.int32)
    for i, example in enumerate(source):
        with Image.open(io.BytesIO(example["image"])) as image:
            pixels = np.asarray(image)
        if pixels.shape != entry.image_shape:  # three channels imply uint8 in Pillow
            raise ValueError(f"{split} image {i} must be {list(entry.image_shape)}, got {list(pixels.shape)}")
        images[i], labels[i] = pixels, example["label"]
    if labels.min() < 0 or labels.max() >= len(entry.classes):
        expected = f"{split} labels must be in 0..{len(entry.classes) - 1}"
        raise ValueError(f"{expected}, got {labels.min()}..{labels.max()}")
    return Split(images, labels)
