"""Data sets: labelled uint8 images in two splits."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lowcost.data.batches import epoch_order


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in a fixed order.

    Args:
        images: uint8 [N, H, W, C], N ≥ 1; may be a read-only memory map.
        labels: int32 [N].

    Raises:
        ValueError: a dtype or a shape is wrong.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        images, labels = (f"{array.dtype} {list(array.shape)}" for array in (self.images, self.labels))
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not len(self.images):
            raise ValueError(f"Split.images must be uint8 [N, H, W, C] with N ≥ 1, got {images}")
        if self.labels.dtype != np.int32 or self.labels.shape != (len(self.images),):
            raise ValueError(f"Split.labels must be int32 [{len(self.images)}], one per image, got {labels}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the images, row by row, and then of the labels as 32-bit integers, in hexadecimal digits."""
        result = hashlib.sha256()
        for array in (*self.chunks(), self.labels.astype("<i4")):
            result.update(np.ascontiguousarray(array).data)
        return result.hexdigest()

    def chunks(self) -> list[NDArray[np.uint8]]:
        """Returns views of the images in order, each of about 4 MiB, since a memory map may exceed the memory."""
        rows = max(1, 2**22 // self.images[0].nbytes)
        return [self.images[start : start + rows] for start in range(0, len(self), rows)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes.

    Args:
        name: its name in `load`.
        train: training images.
        test: test images, of the same shape.
        classes: class names; label i means classes[i].
        flip: whether an image that is flipped left to right keeps its label.
        origin: where the images were read from: a file, a folder, a URL or a description.

    Raises:
        ValueError: the splits' image shapes differ, or a label is not in 0 … len(classes) − 1.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool
    origin: str = "memory"

    def __post_init__(self) -> None:
        test_shape = self.test.images.shape[1:]
        if test_shape != self.image_shape:
            raise ValueError(f"{self.name}: test images must be {self.image_shape} as in training, got {test_shape}")
        for name, split in (("train", self.train), ("test", self.test)):
            low, high = split.labels.min(), split.labels.max()
            if low < 0 or high >= len(self.classes):
                expected = f"{name} labels must be in 0..{len(self.classes) - 1}, one for each class"
                raise ValueError(f"{self.name}: {expected}, got {low}..{high}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @cached_property
    def digest(self) -> str:
        """The sha256 of the digests of both splits, the images' shape and the classes, in hexadecimal digits."""
        content = ascii((self.train.digest, self.test.digest, self.image_shape, self.classes))
        return hashlib.sha256(content.encode()).hexdigest()

    def sample(self, count: int) -> "Dataset":
        """Returns the data set with `count` training images, sampled at random with a fixed seed, and all test images.

        Raises:
            ValueError: count is below 1 or above the number of training images.
        """
        if not 1 <= count <= len(self.train):
            raise ValueError(f"{self.name}: count must be 1 to {len(self.train)} training images, got {count}")
        rows = np.sort(epoch_order(0, 0, len(self.train))[:count])
        return replace(self, train=Split(self.train.images[rows], self.train.labels[rows]))
