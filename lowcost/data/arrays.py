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

from lowcost.data.dataset import PARTS, Dataset, Split, Task, check_kept, check_task, warn_absent
from lowcost.data.labels import VALUE_LIMIT, standardise
from lowcost.data.masks import point_labels
from lowcost.data.splitting import check_share, fractions, warn_copies
from lowcost.terminal import first_line, printable, warn

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
            [N, H, W, 1 or 3] has one; other arrays with 3 or 4 axes are an error.
        length: resamples signals to this number of points, see `resample`; None keeps them.

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


def resample(signals: NDArray[np.float32], points: int, lengths: NDArray | None = None) -> NDArray[np.float32]:
    """signal(p·(n − 1)/(points − 1)) for p = 0 … points − 1, linear between the n valid points of each signal.

    The first and, unless points = 1, the last point stay, and points = n is the identity. There is no low-pass filter
    before a reduction.

    Args:
        signals: [N, P, C].
        points: the new number of points.
        lengths: n of each signal, [N]; None: P.

    Returns:
        [N, points, C].
    """
    last = np.full(len(signals), signals.shape[1] - 1) if lengths is None else np.asarray(lengths, np.int64) - 1
    places = np.linspace(0, last, points, axis=1)[..., None]
    left = places.astype(np.int64)
    start, end = (np.take_along_axis(signals, p, 1) for p in (left, np.minimum(left + 1, last[:, None, None])))
    return start + (places - left).astype(np.float32) * (end - start)


def with_mask(signals: NDArray[np.float32], lengths: NDArray) -> NDArray[np.float32]:
    """Returns signals [N, P, C] with a further channel, 1 at the first n points of each and 0 after; 0 after in all."""
    valid = (np.arange(signals.shape[1]) < np.asarray(lengths)[:, None])[..., None]
    return np.concatenate([np.where(valid, signals, np.float32(0)), valid.astype(np.float32)], axis=-1)


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
    for part, arrays in parts.items():
        arrays["images"] = with_channels(f"{printable(path)}: {part} images", arrays["images"], grid_axes)
        _check_images(f"{printable(path)}: {part}", arrays, length)
    labelled = {part: (f"{printable(path)}: {part} labels", arrays["labels"]) for part, arrays in parts.items()}
    if task == "pixels":
        grids = {part: arrays["images"].shape[:-1] for part, arrays in parts.items()}
        classes, labels = point_labels(labelled, grids, names, "the array classes")
    else:
        classes, labels = _class_labels(labelled, names) if task == "classes" else _numbers(labelled, names, task)
    for part, arrays in parts.items():
        arrays["labels"] = labels[part]
    if "test" not in parts:
        parts |= _split(parts["train"], test_share, classes, task)
    scale = None
    if task == "values":
        scale = standardise({part: ([], arrays["labels"]) for part, arrays in parts.items()}, classes)
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
        warn(f"{path}: ignored {len(unknown)} arrays: {', '.join(unknown[:10])}{', ...' * (len(unknown) > 10)}")
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


def _class_labels(
    labelled: Mapping[str, tuple[str, NDArray]], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Returns the names of the classes, and part → the class of each example, int32 [N]."""
    columns = {}
    for part, (where, labels) in labelled.items():
        if labels.shape[1:] not in ((), (1,)) or labels.dtype.kind not in "biuU":
            expected = f"{where} must be integers or strings, [N] or [N, 1]"
            one = labels.shape[1:] in ((), (1,))
            remedy = "cast them" if one else "take the argmax of one-hot labels"
            tasks = "task tags or values" if one else "task pixels if they are classes of points, or tags or values"
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{expected}, got {got}; {remedy}, or choose the {tasks}")
        columns[part] = labels.ravel()
    train = columns["train"]
    if train.dtype.kind == "U":
        for part in [] if classes else [part for part, column in columns.items() if column.dtype.kind != "U"]:
            problem = f"{labelled[part][0]} must be strings as in training, got {columns[part].dtype}"
            raise ValueError(f"{problem}; add the array classes")
        classes = classes or tuple(np.unique(train).tolist())
    elif not classes:
        low, high = int(train.min()), int(train.max())
        if low < 0 or high >= len(train):
            expected = f"{labelled['train'][0]} must be from 0 to K - 1, for at most {len(train)} classes"
            raise ValueError(f"{expected}, got {low}..{high}; renumber them, or use strings")
        classes = tuple(map(str, range(high + 1)))
    by_name = {name: i for i, name in enumerate(classes)}
    result = {}
    for part, column in columns.items():
        unique, inverse = np.unique(column, return_inverse=True)
        found = unique.tolist()
        places = by_name if column.dtype.kind == "U" else {i: i for i in range(len(classes))}
        if unknown := [label for label in found if label not in places]:
            expected = f"{labelled[part][0]} must be of the {len(classes)} classes"
            raise ValueError(f"{expected}, got {printable(repr(unknown[0]))}; correct them, or the array classes")
        result[part] = np.array([places[label] for label in found], np.int32)[inverse]
    if len(classes) < 2:
        raise ValueError(f"{labelled['train'][0]} must be of at least two classes, got {classes}")
    return classes, result


def _numbers(
    labelled: Mapping[str, tuple[str, NDArray]], names: tuple[str, ...], task: Task
) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Returns the names of the tags or values, and part → labels, float64 [N, K]."""
    result = {}
    for part, (where, labels) in labelled.items():
        columns = labels.reshape(len(labels), -1)
        names = names or tuple(map(str, range(columns.shape[1])))
        numeric = labels.ndim <= 2 and labels.dtype.kind in "fiub"
        if not numeric or columns.shape[1] != len(names):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{where} must be numbers [N, {len(names)}], one for each of the {task}, got {got}")
        columns = columns.astype(np.float64)
        if not (np.isin(columns, (0, 1)) if task == "tags" else np.abs(columns) < VALUE_LIMIT).all():
            expected = "0 or 1" if task == "tags" else f"from {-VALUE_LIMIT} to {VALUE_LIMIT}"
            raise ValueError(f"{where} must be {expected}, got {columns.min()}..{columns.max()}")
        result[part] = columns
    return names, result


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
            got = f"NaN, an infinity or a larger number in example {example}"
            remedy = "replace it, or state the lengths of padded signals"
            raise ValueError(f"{where} images must be finite in float32, got {got}; {remedy}")
    return split
