"""What a data set is: labelled uint8 images in two splits."""

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
        ValueError: a dtype, a rank or the two lengths are wrong.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, array, dtype, axes in (
            ("images", self.images, np.uint8, "[N, H, W, C]"),
            ("labels", self.labels, np.int32, "[N]"),
        ):
            if array.dtype != dtype or array.ndim != axes.count(",") + 1:
                expected = f"{np.dtype(dtype).name} {axes}"
                raise ValueError(f"Split.{name}: expected {expected}, got {array.dtype.name} {list(array.shape)}")
        if len(self.images) != len(self.labels) or not len(self.labels):
            got = f"{len(self.images)} images and {len(self.labels)} labels"
            raise ValueError(f"Split: expected as many labels as images and at least one, got {got}")

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
        """Views of the images in order, each of at most about 4 MiB: a memory map may be larger than the memory."""
        rows = max(1, 2**22 // self.images[0].nbytes)
        return [self.images[start : start + rows] for start in range(0, len(self), rows)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes.

    Args:
        name: what `load` knows it by.
        train: the images to learn from.
        test: the images to judge by, of the same shape.
        classes: class names; label i means classes[i].
        flip: whether a left-right mirror image keeps its label.
        origin: where the images were read from: a file, a folder, a URL or words.

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
            raise ValueError(
                f"Dataset {self.name}: expected test images shaped as the training images, {self.image_shape}, "
                f"got {test_shape}"
            )
        for name, split in (("train", self.train), ("test", self.test)):
            low, high = split.labels.min(), split.labels.max()
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"Dataset {self.name}: expected {name} labels in 0..{len(self.classes) - 1}, one for each class, "
                    f"got {low}..{high}"
                )

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
        """The same with so many of the training images, drawn by lot, always the same ones; all test images.

        Raises:
            ValueError: there are not as many.
        """
        if not 1 <= count <= len(self.train):
            raise ValueError(f"{self.name} has {len(self.train)} training images, got {count} to draw from them")
        rows = np.sort(epoch_order(0, 0, len(self.train))[:count])
        return replace(self, train=Split(self.train.images[rows], self.train.labels[rows]))
