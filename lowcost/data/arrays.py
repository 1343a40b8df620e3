"""Reads arrays as a data set: signals, images or volumes in an .npz file, or in a folder of .npy files."""

import hashlib
import itertools
import numbers
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowcost.data.array_labels import class_labels, number_labels, point_labels
from lowcost.data.dataset import PARTS, Dataset, Split
from lowcost.data.labels import standardise
from lowcost.data.signals import resample, with_mask
from lowcost.data.splitting import check_kept, check_share, fractions, warn_absent, warn_copies
from lowcost.data.tasks import Task, check_task
from lowcost.terminal import first_line, listed, note, printable

ROLES = {"images": ("{}_images", "x_{}"), "labels": ("{}_labels", "y_{}"), "lengths": ("{}_lengths", "lengths_{}")}
"""What an array holds → its names, where {} is the part."""
FORM = "an .npz file, or a folder of .npy files, with numeric arrays"
KINDS = {1: "signals", 2: "images", 3: "volumes"}
Parts = dict[str, dict[str, NDArray]]
"""Part → role → array."""


def read_arrays(
    data_dir: str | PathLike[str],
    *,
    test_share: float = 0.2,
    task: Task = "classes",
    grid_axes: int | None = None,
    length: int | None = None,
) -> Dataset:
    """Returns signals, images or volumes from an .npz file, or from a folder of .npy files, which are memory-mapped.

    The arrays are `train_images` [N, *grid] or [N, *grid, C] and `train_labels`, and optionally the same for test and
    val; or `x_train`, `y_train` and so on. Without test arrays, the training arrays are split by the sha256 of each
    image, so that copies stay together. Integers of 8 and 16 bits keep their dtype; all other numbers become float32.

    Labels of the task "classes" are integers from 0, or strings, [N] or [N, 1]; of "tags" 0 or 1 [N, K]; of "values"
    numbers [N, K] or [N], which are standardised with mean and deviation of the training images. Labels of the task
    "pixels" are integers from 0 to at most 254, [N, *grid] or [N, *grid, 1], or 255 at points without a label. They
    determine grid_axes unless it is given. Those of images and volumes make the task "classes" become "pixels". Those
    of signals do not, since one-hot labels of classes may have the same shape. An array `classes` holds K names. An
    array `keeps` holds the changes that keep a label, see `lowcost.data.Dataset`; an empty one allows none. The default
    is shift and hide, and for signals also scale and noise.

    Signals of different lengths are padded at the end to one length, with any values, and `train_lengths` (or
    `lengths_train`) holds the number of valid points of each. They become float32 and get a mask as their last channel,
    unless `length` resamples them.

    Args:
        data_dir: the file or the folder.
        test_share: above 0 and below 1; has no effect if there are test arrays.
        task: "classes", "tags", "values" or "pixels".
        grid_axes: number of axes of the grid. With None, [N, n, n] and [N, n, n, n] have no axis of channels, and
            [N, H, W, 1 or 3] has one; other arrays with 3 or 4 axes are an error, unless they are signals with lengths.
        length: resamples signals to this number of points, see `signals.resample`; None keeps them.

    Raises:
        ValueError: an argument is out of its range, or an array is missing, damaged, or not as described.
        FileNotFoundError: data_dir is missing.
    """
    check_share("test_share", test_share)
    check_task(task)
    if grid_axes not in (None, *KINDS):
        raise ValueError(f"grid_axes must be 1, 2, 3 or None, got {grid_axes}")
    if length is not None and (not isinstance(length, numbers.Integral) or length < 1):
        raise ValueError(f"length must be a whole number of at least 1 or None, got {length}")
    return _load(Path(data_dir), test_share, task, grid_axes, length)


def with_channels(where: str, images: NDArray, grid_axes: int | None) -> NDArray:
    """Returns [N, *grid] or [N, *grid, C] as [N, *grid, C], see `read_arrays`; `where` names the array in errors."""
    shape, rank = list(images.shape), images.ndim - 1
    grid_axes = _grid_axes(images) if grid_axes is None else grid_axes
    if grid_axes == 0:
        *grid, last = shape[1:]
        words = [" x ".join(map(str, points)) for points in (grid, shape[1:])]
        got = f"{rank - 1} means {KINDS[rank - 1]} of {words[0]} points with {last} channels"
        got += f", and {rank} means {KINDS[rank]} of {words[1]} points with one channel"
        raise ValueError(f"{where} {shape}: grid_axes must be {rank - 1} or {rank}, got None; add --grid-axes: {got}")
    if grid_axes is None or rank not in (grid_axes, grid_axes + 1):
        axes = "1 to 3 grid axes" if grid_axes is None else f"grid_axes {grid_axes}"
        raise ValueError(f"{where} must be [N, *grid] or [N, *grid, C] with {axes}, got {shape}; reshape them")
    return images[..., None] if rank == grid_axes else images


def _grid_axes(images: NDArray) -> int | None:
    """Returns the number of grid axes that the shape implies, 0 if there are two possibilities, None without any."""
    rank = images.ndim - 1
    cubic = rank in KINDS and len(set(images.shape[1:])) == 1
    return rank if cubic else {2: 0, 3: 2 * (images.shape[-1] in (1, 3)), 4: 3}.get(rank)


def _load(path: Path, test_share: float, task: Task, grid_axes: int | None, length: int | None) -> Dataset:
    contents = _contents(path)
    parts, names = _parts(path, contents), _strings(path, contents, "classes")
    train, varies = parts["train"], "lengths" in parts["train"] or length is not None
    point_axes = _point_axes(train["images"], train["labels"], grid_axes)
    if task == "classes" and not varies and point_axes in (2, 3) and train["labels"].dtype.kind in "biu":
        task = "pixels"
    if task == "pixels":
        grid_axes = grid_axes or point_axes
        if varies:
            raise ValueError("task must not be pixels for signals with lengths or length, got pixels; leave these out")
    if varies and grid_axes is None and train["images"].ndim in (2, 3):
        grid_axes = 1  # only signals have lengths
    for part, arrays in parts.items():
        arrays["images"] = with_channels(f"{printable(path)}: {part} images", arrays["images"], grid_axes)
        _check_images(f"{printable(path)}: {part}", arrays, length)
    labelled = {part: (f"{printable(path)}: {part} labels", arrays["labels"]) for part, arrays in parts.items()}
    if task == "pixels":
        grids = {part: arrays["images"].shape[:-1] for part, arrays in parts.items()}
        classes, labels = point_labels(labelled, grids, names, "the array classes")
    else:
        classes, labels = class_labels(labelled, names) if task == "classes" else number_labels(labelled, names, task)
    for part, arrays in parts.items():
        arrays["labels"] = labels[part]
    if "test" not in parts:
        parts |= _split(parts["train"], test_share, classes, task)
    scale = None
    if task == "values":
        scale = standardise({part: arrays["labels"] for part, arrays in parts.items()}, classes)
    splits = {PARTS[part]: _prepared(f"{printable(path)}: {part}", arrays, length) for part, arrays in parts.items()}
    signals, masked = splits["train"].images.ndim == 3, "lengths" in parts["train"] and length is None
    default = ("shift", "hide", *(("scale", "noise") if signals else ()))
    keeps: Any = _strings(path, contents, "keeps") if "keeps" in contents else default
    warn_copies(printable(path), {part: split.images for part, split in splits.items()})
    for part, split in splits.items():
        warn_absent(str(path), part, split.labels, classes, task)
    return Dataset(
        "arrays", classes=classes, keeps=keeps, origin=str(path), task=task, scale=scale, masked=masked, **splits
    )


def _point_axes(images: NDArray, labels: NDArray, grid_axes: int | None) -> int | None:
    """Returns n if the labels [N, *grid] or [N, *grid, 1] have the n grid axes of the images, else None.

    Labels of the shape of images with channels are one-hot labels, unless there is one channel.
    """
    for axes in [labels.ndim - 2] * (labels.shape[-1:] == (1,)) + [labels.ndim - 1]:
        channels = images.ndim - 1 - axes
        possible = axes in KINDS and grid_axes in (None, axes) and channels in (0, 1)
        if channels == 0 and grid_axes is None:
            possible &= _grid_axes(images) in (0, axes)
        if possible and labels.shape[: axes + 1] == images.shape[: axes + 1]:
            return axes
    return None


def _contents(path: Path) -> dict[str, NDArray]:
    """Returns name → array of all arrays that `read_arrays` knows, and reports the names of others."""
    if not path.exists():
        raise FileNotFoundError(f"data_dir must be {FORM}, got no such file as {printable(path)}; name one that exists")
    known = {form.format(part) for forms in ROLES.values() for form in forms for part in PARTS} | {"classes", "keeps"}
    try:
        if path.is_dir():
            names = {file.stem for file in path.glob("*.npy")}
            contents = {n: np.load(path / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in names & known}
        else:
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if not isinstance(loaded, np.lib.npyio.NpzFile):
                    raise ValueError("a single array")
                names = set(loaded.files)
                contents = {name: loaded[name] for name in names & known}
        if others := [name for name, array in contents.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]} is no array")
    except Exception as error:  # a damaged file raises errors of many types
        got = f"{type(error).__name__}: {printable(first_line(error))}"
        raise ValueError(
            f"{printable(path)} must be {FORM}, got {got}; save it again with np.savez or np.save"
        ) from error
    if unknown := sorted(names - known):
        note(f"{path}: ignored {len(unknown)} arrays: {listed(unknown)}")
    return contents


def _parts(path: Path, contents: Mapping[str, NDArray]) -> Parts:
    """Returns the arrays of each part, with equal numbers of examples."""
    parts: Parts = {}
    for part in PARTS:
        for role, forms in ROLES.items():
            names = [name for form in forms if (name := form.format(part)) in contents]
            if len(names) > 1:
                raise ValueError(f"{printable(path)} must hold {names[0]} or {names[1]}, got both; remove one")
            for name in names:
                parts.setdefault(part, {})[role] = contents[name]
    needed = {"images", "labels"}.union(*(arrays.keys() for arrays in parts.values()))
    for part in {"train": None, **parts}:
        arrays = parts.get(part, {})
        if missing := sorted(needed - arrays.keys()):
            expected = " or ".join(form.format(part) for form in ROLES[missing[0]])
            got = printable(", ".join(sorted(contents)) or "no known array")
            raise ValueError(f"{printable(path)} must hold {expected}, got {got}; add it")
        counts = {array.shape[:1] for array in arrays.values()}
        if len(counts) > 1 or counts & {(), (0,)}:
            got = ", ".join(f"{role} {list(array.shape)}" for role, array in arrays.items())
            raise ValueError(f"{printable(path)}: {part} arrays must have one entry per example, got {got}")
    return parts


def _strings(path: Path, contents: Mapping[str, NDArray], name: str) -> tuple[str, ...]:
    """Returns the strings of an array, () if it is empty or missing."""
    array = contents.get(name, np.array(()))
    if not array.size:  # np.array([]) holds floats
        return ()
    if array.dtype.kind != "U" or array.ndim != 1 or len(set(array.tolist())) < len(array):
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{printable(path)}: {name} must be different strings [K], got {got}; save np.array([...])")
    return tuple(array.tolist())


def _split(arrays: dict[str, NDArray], share: float, classes: tuple[str, ...], task: Task) -> Parts:
    """Returns train and test; the sha256 of an image's numbers, without padding, decides whether it is a test image."""
    lengths = arrays.get("lengths", itertools.repeat(None))
    with np.errstate(over="ignore"):  # refused later
        valid = (image[:n].astype("<f4") for image, n in zip(arrays["images"], lengths, strict=False))
        tested = fractions(hashlib.sha256(image.tobytes()).digest() for image in valid) < share
    check_kept("test_share", share, tested, arrays["labels"], classes, task)
    arrays = {**arrays, "rows": np.arange(len(tested))}
    parts = {"train": ~tested, "test": tested}
    return {part: {role: array[rows] for role, array in arrays.items()} for part, rows in parts.items()}


def _check_images(where: str, arrays: dict[str, NDArray], length: int | None) -> None:
    """Raises ValueError unless the images are numbers, and signals with lengths in their range if there are lengths."""
    images, lengths = arrays["images"], arrays.get("lengths")
    if images.dtype.kind not in "fiub":
        raise ValueError(f"{where} images must be integers or floats, got {images.dtype}; cast them")
    if not images.size:
        raise ValueError(f"{where} images must hold numbers, got shape {list(images.shape)}; leave out empty arrays")
    if (length is not None or lengths is not None) and images.ndim != 3:
        expected = f"{where} images must be signals [N, points, C] for length or lengths"
        raise ValueError(f"{expected}, got {list(images.shape)}; leave these out")
    if lengths is not None:
        points, integers = images.shape[1], lengths.dtype.kind in "iu" and lengths.ndim == 1
        if not integers or lengths.min() < 1 or lengths.max() > points:
            range_ = f" from {lengths.min()} to {lengths.max()}" if integers else ""
            got = f"{lengths.dtype} {list(lengths.shape)}{range_}"
            raise ValueError(f"{where} lengths must be integers [N] from 1 to {points}, got {got}; correct them")


def _prepared(where: str, arrays: dict[str, NDArray], length: int | None) -> Split:
    """Returns images of one of `dataset.DTYPES`, resampled or masked if they have lengths, with their labels."""
    images, labels, lengths = arrays["images"], arrays["labels"], arrays.get("lengths")
    unchanged = images.dtype.kind in "iu" and images.dtype.itemsize <= 2 and length is None and lengths is None
    with np.errstate(over="ignore"):  # the result is checked
        images = images.astype(images.dtype.newbyteorder("=") if unchanged else np.float32, copy=False)
    if length is not None:
        images = resample(images, length, lengths)
    elif lengths is not None:
        images = with_mask(images, lengths)
    files = tuple(f"train[{row}]" for row in arrays["rows"]) if "rows" in arrays else None
    split = Split(images, labels.astype(np.float32) if labels.dtype.kind == "f" else labels, files)
    for number, chunk in enumerate([] if unchanged else split.chunks()):
        finite = np.isfinite(chunk).reshape(len(chunk), -1).all(1)
        if not finite.all():
            example = number * len(split.chunks()[0]) + int(np.argmin(finite))
            got = f"NaN, an infinity or a larger number in example {files[example] if files else example}"
            remedy = "replace it, or state the lengths of padded signals"
            raise ValueError(f"{where} images must be finite in float32, got {got}; {remedy}")
    return split
