"""Holds the images that `experiments.segmentation` labels, their parts, and the networks for each."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.common import brain
from experiments.common.config import Architecture
from experiments.common.flax_networks import UNet
from lowcost import nn
from lowcost.data import IGNORED

Task = Literal["microscopy", "tissue"]
Box = tuple[tuple[int, int], ...]
"""A part of an image: the first point along each axis, and the one after the last."""
Place = tuple[slice, ...]
LEFT, RIGHT = ((0, 512), (0, 256)), ((0, 512), (256, 512))
"""The training and the test part of the image of nuclei."""
UPPER, LOWER = ((0, 352), (0, 256)), ((352, 512), (0, 256))
"""The parts of `LEFT` on which the recipe was chosen."""


class Scene(NamedTuple):
    """An image, and its parts.

    Attributes:
        image: float32 [*grid], in [0, 1].
        labels: uint8 [*grid]: classes, or `IGNORED`.
        train: the training part.
        test: the test part.
        shown: the indices of the plane of the test part that the figure shows.
        perturbed: (random numbers, patches) → patches with noise.
    """

    image: np.ndarray
    labels: np.ndarray
    train: Sequence[Box]
    test: Sequence[Box]
    shown: Any
    perturbed: Callable[[np.random.Generator, np.ndarray], np.ndarray] = lambda rng, patches: patches


class Setting(NamedTuple):
    """What a task needs besides its scene.

    Attributes:
        scene: whether to validate → the scene.
        classes: their names.
        side: points per axis of a training patch.
        tile: largest number of points along each axis of a tile of the test part.
        batch: patches per optimiser step.
        networks: name → network; all have about the same number of weights.
    """

    scene: Callable[[bool], Scene]
    classes: tuple[str, ...]
    side: int
    tile: int
    batch: int
    networks: dict[str, Any]


def microscopy(validate: bool) -> Scene:
    """Returns the image of nuclei: its left half to train and its right half to test, or two parts of the left half."""
    package = importlib.util.find_spec("stardist")  # finds its files without importing it
    if package is None or package.origin is None:
        raise ImportError("stardist must be installed, got no such package; run pip install --no-deps stardist")
    from PIL import Image

    folder = Path(package.origin).parent / "data" / "images"
    image, numbers = (np.asarray(Image.open(folder / f"{name}2d.tif")) for name in ("img", "mask"))
    train, test = (UPPER, LOWER) if validate else (LEFT, RIGHT)
    labels = (numbers > 0).astype(np.uint8)
    return Scene(image.astype(np.float32) / 255, labels, [train], [test], tuple(slice(*ends) for ends in test))


def tissue(validate: bool) -> Scene:
    """Returns the template, upright, with the slabs of `brain`; outside the brain there is no label."""
    image, maps, inside = (x.swapaxes(-3, -1)[..., ::-1, :, :] for x in brain.template())
    labels = np.where(inside > 0, maps.argmax(0), IGNORED).astype(np.uint8)
    kept, tested = brain.slabs(validate)
    train, test = ([((0, len(image)), slab, (0, image.shape[2])) for slab in some] for some in (kept, tested))
    return Scene(image, labels, train, test, np.s_[:, tested[len(tested) // 2][0] + 6], brain.perturbed)


def networks(
    classes: int,
    steps: int,
    reach: float,
    widths: dict[Architecture, int],
    unets: Sequence[tuple[int, ...]],
    decoded: tuple[int, ...],
) -> dict[str, Any]:
    """Returns our networks, of one block on the full grid or with a decoder, and a U-Net for each tuple of channels."""
    ours = partial(nn.network, num_classes=classes, head="pixels", steps_per_block=steps)
    implicit = partial(ours, "implicit_rd", boundary="symmetric")
    return {
        f"implicit_rd, reach {reach:g}": implicit((widths["implicit_rd"],), reach=reach),
        "implicit_rd": implicit((widths["implicit_rd"],)),
        "implicit_rd, decoder": implicit(decoded, decoder=True, steps_per_block=DECODED_STEPS),
        **{name: ours(name, (widths[name],)) for name in widths if name != "implicit_rd"},
        **{f"U-Net, {len(channels)} levels": UNet(channels, classes) for channels in unets},
    }


DECODED_STEPS = 3
"""Steps per block of the networks with a decoder."""
PLANE: dict[Architecture, int] = {"implicit_rd": 44, "explicit_rd": 44, "linear_mix": 31, "resnet": 12}
SPACE: dict[Architecture, int] = {"implicit_rd": 33, "explicit_rd": 33, "linear_mix": 25, "resnet": 8}
TASKS: dict[Task, Setting] = {
    "microscopy": Setting(
        microscopy, ("background", "nucleus"), 64, 512, 4, networks(2, 4, 8, PLANE, [(11, 22), (5, 10, 20)], (20, 40))
    ),
    "tissue": Setting(tissue, brain.CLASSES, 12, 12, 8, networks(3, 3, 3, SPACE, [(6, 12)], (14, 28))),
}
