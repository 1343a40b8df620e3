"""Holds data sets: labelled images, signals or volumes in two or three splits."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lowcost.data.batches import random_rows
from lowcost.data.splitting import check_kept, check_share, pixel_fractions, warn_absent
from lowcost.data.tasks import IGNORED, Task, check_task
from lowcost.scaling import Moments

Change = Literal["flip", "shift", "hide", "scale", "noise"]
"""A change of an image: flipped; shifted, cropped or resized; partly hidden, or mixed; multiplied; with noise."""
PARTS = {"train": "train", "test": "test", "val": "validation"}
"""Name of a part in folders and arrays → split."""
PHOTOGRAPHS: tuple[Change, ...] = ("flip", "shift", "hide")
"""The changes that keep the label of a photograph."""
DTYPES = ("uint8", "int8", "uint16", "int16", "float32")
"""The dtypes of images. Integers are scaled from their range to [0, 1]; the network standardises all but uint8."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in a fixed order.

    Args:
        images: [N, *grid, C] of one of `DTYPES`, with 1 to 3 grid axes: signals, images or volumes; N ≥ 1. May be a
            read-only memory map.
        labels: int32 [N] for classes; float32 [N, K] for K tags (0 or 1) or K values; uint8 [N, *grid] for pixels.
        files: the path of each image, relative to the folder of the data set; train[i] for selected training images of
            sources without files; None if such a source is whole.

    Raises:
        ValueError: a dtype, a shape or the number of files is wrong.
    """

    images: NDArray
    labels: NDArray
    files: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images, labels = (f"{array.dtype} {list(array.shape)}" for array in (self.images, self.labels))
        if self.images.dtype not in map(np.dtype, DTYPES) or self.images.ndim not in (3, 4, 5) or not self.images.size:
            expected = f"{', '.join(DTYPES)} [N, *grid, C] with 1 to 3 grid axes and N ≥ 1"
            raise ValueError(f"Split.images must be {expected}, got {images}; cast other numbers to float32")
        form, n = (self.labels.dtype, self.labels.ndim), len(self.images)
        of_points = self.labels.dtype == np.uint8 and self.labels.shape == self.images.shape[:-1]
        of_images = form in ((np.int32, 1), (np.float32, 2)) and len(self.labels) == n and self.labels.size
        if not of_points and not of_images:
            expected = f"int32 [{n}], one per image, or float32 [{n}, K], or uint8 {list(self.images.shape[:-1])}"
            raise ValueError(f"Split.labels must be {expected}, got {labels}")
        if self.files is not None and len(self.files) != n:
            raise ValueError(f"Split.files must be {n} paths, one per image, or None, got {len(self.files)}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the images, row by row, and then of the labels, little-endian, in hexadecimal digits."""
        result = hashlib.sha256()
        for array in (*self.chunks(), self.labels):
            result.update(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).data)
        return result.hexdigest()

    def chunks(self) -> list[NDArray]:
        """Returns views of the images in order, each of about 4 MiB, since a memory map may exceed the memory."""
        rows = max(1, 2**22 // self.images[0].nbytes)
        return [self.images[start : start + rows] for start in range(0, len(self), rows)]

    def points(self, *, masked: bool = False) -> Iterator[NDArray]:
        """Yields the values [points, C] of each part of the images, a part at a time.

        Args:
            masked: only those where the last channel is positive, without that channel.
        """
        for images in self.chunks():
            values = images.reshape(-1, images.shape[-1])
            yield values[values[:, -1] > 0, :-1] if masked else values

    def moments(self, *, masked: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the mean and the standard deviation of each channel over all `points`."""

        def mean(of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Any:
            sums = [(of(part.astype(np.float64)).sum(0), len(part)) for part in self.points(masked=masked)]
            return sum(total for total, _ in sums) / sum(count for _, count in sums)

        first = next(part[0] for part in self.points(masked=masked) if len(part)).astype(np.float64)
        means = first + mean(lambda x: x - first)  # exact for a constant channel, whose deviation is then 0
        return means, np.sqrt(mean(lambda x: (x - means) ** 2))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training, a test and, if it has one, a validation split over the same classes.

    Args:
        name: its name in `load`.
        train: training images.
        test: test images, of the same shape.
        classes: K names. With the task "classes" or "pixels", label i means classes[i]; else column i of the labels is
            classes[i].
        keeps: the changes that keep an image's label, see `Change`; training makes no others, and mixes images only
            if parts of them may be hidden.
        origin: where the images were read from: a file, a folder, a URL or a description.
        validation: images of the same shape for choices during training, which must not see the test images, or None.
        task: what the labels are, see `Task`.
        scale: (means, standard deviations) of the K values before they were standardised; None for other tasks.
        masked: signals of variable length: the last channel is 1 at the valid points and 0 at the padding, where all
            other channels are 0. Needs float32 [N, points, C] with C ≥ 2, and at least one valid point per signal.

    Raises:
        ValueError: the splits' image shapes or dtypes differ; a label is not in 0 … K − 1, no tag (0 or 1) or not
            finite; `scale` does not belong to the task; or an unknown change or a wrong shape of masked signals.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    keeps: tuple[Change, ...]
    origin: str = "memory"
    validation: Split | None = None
    task: Task = "classes"
    scale: Moments | None = None
    masked: bool = False

    def __post_init__(self) -> None:
        check_task(self.task)
        if not set(self.keeps) <= set(get_args(Change)):
            raise ValueError(f"{self.name}: keeps must be of {', '.join(get_args(Change))}, got {self.keeps}")
        (*grid, channels), dtype = self.image_shape, self.train.images.dtype
        if self.masked and (len(grid) > 1 or channels < 2 or dtype != np.float32):
            expected = "float32 [N, points, C] with a mask as the last of C ≥ 2 channels"
            raise ValueError(f"{self.name}: masked signals must be {expected}, got {dtype} {self.image_shape} each")
        for part, split in self.splits.items():
            if (shape := split.images.shape[1:]) != self.image_shape:
                raise ValueError(f"{self.name}: {part} images must be {self.image_shape} as in training, got {shape}")
            if split.images.dtype != dtype:
                raise ValueError(f"{self.name}: {part} images must be {dtype} as in training, got {split.images.dtype}")
            if self.masked and not split.images[..., -1].any(1).all():
                raise ValueError(f"{self.name}: masked {part} signals must have valid points, got a mask of zeros")
            self._check_labels(part, split.labels)
        if np.array(self.scale).shape != ((2, len(self.classes)) if self.task == "values" else ()):  # None has shape ()
            expected = f"(means, standard deviations) of {len(self.classes)} values, and None for other tasks"
            raise ValueError(f"{self.name}: scale must be {expected}, got {self.scale} for {self.task}")

    def _check_labels(self, part: str, labels: NDArray) -> None:
        number, low, high = len(self.classes), labels.min(), labels.max()
        shape: tuple[int, ...] = (number,)
        match self.task:
            case "classes":
                expected, fits, shape = f"in 0..{number - 1}, one for each class", low >= 0 and high < number, ()
            case "tags":
                expected, fits = f"0 or 1, for {number} tags", np.isin(labels, (0, 1)).all()
            case "values":
                expected, fits = f"finite, for {number} values", np.isfinite(labels).all()
            case "pixels":
                expected, shape = f"in 0..{number - 1} or {IGNORED}, one for each point", self.image_shape[:-1]
                fits = number <= IGNORED and labels.max(where=labels != IGNORED, initial=0) < number
        if not fits or labels.shape[1:] != shape:
            got = f"{low}..{high} in {labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{self.name}: {part} labels must be {expected}, got {got}")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(*grid, C) of every image, where C includes the mask of masked signals."""
        return self.train.images.shape[1:]

    @property
    def splits(self) -> dict[str, Split]:
        """Name → split: "train", "test" and, if there is one, "validation"."""
        further = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, "test": self.test, **further}

    @cached_property
    def digest(self) -> str:
        """The sha256 of the digests of all splits, the images' shape, the classes, the task and the scale, in hex.

        It leaves out the validation split if there is none, and the task and the scale if the task is "classes". It
        includes the dtype if that is not uint8, and whether the signals are masked if they are.
        """
        content: tuple = (self.train.digest, self.test.digest, self.image_shape, self.classes)
        if self.validation is not None:
            content += ("validation", self.validation.digest)
        if self.task != "classes":
            content += (self.task, np.asarray(self.scale or (), float).tolist())
        if (dtype := self.train.images.dtype) != np.uint8:
            content += (dtype.name,)
        if self.masked:
            content += ("masked",)
        return hashlib.sha256(ascii(content).encode()).hexdigest()

    @cached_property
    def moments(self) -> Moments | None:
        """(means, standard deviations) of the channels over the training images; None for uint8.

        They are in the units of `lowcost.data.to_unit_range`: floats as they are, integers from 0 to 1. Pixels of uint8
        fill that range; other integers may fill little of it, and the network standardises them like floats.

        The deviation of a constant channel is replaced by 1. Masked signals count at their valid points, without the
        mask. The numbers are rounded to float32, because their last digits depend on the machine.
        """
        dtype = self.train.images.dtype
        if dtype == np.uint8:
            return None
        low, high = (0, 1) if dtype == np.float32 else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        means, deviations = self.train.moments(masked=self.masked)
        means = ((means - low) / (high - low)).astype(np.float32)
        deviations = (deviations / (high - low)).astype(np.float32)
        deviations[deviations < np.finfo(np.float32).tiny] = 1
        return tuple(means.tolist()), tuple(deviations.tolist())

    def sample(self, count: int) -> "Dataset":
        """Returns the data set with `count` training images, sampled at random with a fixed seed.

        All test and validation images stay. One line on stderr names the classes or tags without training images.

        Raises:
            ValueError: count is below 1 or above the number of training images.
        """
        if not 1 <= count <= len(self.train):
            expected = f"{self.name}: count must be 1 to {len(self.train)} training images"
            raise ValueError(f"{expected}, got {count}; decrease it, or take all")
        train = _rows(self.train, random_rows(len(self.train), count))
        warn_absent(self.name, "train", train.labels, self.classes, self.task)
        return replace(self, train=train)

    def hold_out(self, share: float) -> "Dataset":
        """Moves about `share` of the training images to a validation split, by the sha256 of their pixels.

        Copies of an image stay together. Images that are added to the data set later move no image from validation to
        training. The images of both parts are copied into memory. One line on stderr names the classes or
        tags without validation images.

        Args:
            share: above 0 and below 1.

        Raises:
            ValueError: share is out of its range, there is a validation split already, no image would be left in one of
                the two parts, or none of a class for training.
        """
        check_share("share", share)
        if self.validation is not None:
            expected = f"{self.name}: hold_out (--validation-share) needs data without validation images"
            raise ValueError(f"{expected}, got {len(self.validation)}; use them as they are")
        held = pixel_fractions(chain.from_iterable(self.train.chunks())) < share
        check_kept(f"{self.name}: share", share, held, self.train.labels, self.classes, self.task)
        train, validation = _rows(self.train, ~held), _rows(self.train, held)
        for part, split in (("train", train), ("validation", validation)):
            warn_absent(self.name, part, split.labels, self.classes, self.task)
        return replace(self, train=train, validation=validation)


def _rows(train: Split, rows: NDArray) -> Split:
    """Returns some of the training images; those without a file are called train[i]."""
    files = np.array(train.files or [f"train[{i}]" for i in range(len(train))], object)[rows]
    return Split(train.images[rows], train.labels[rows], tuple(files))
