"""Augmentation to look at: eight training images, and below them what each function of `lowcost.data.augment` makes.

Writes one PNG.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import tyro

from experiments.common import entry
from experiments.common.files import save_figure
from lowcost.terminal import printable

MARGIN, LABEL, SIDE, GAP = 16, 176, 96, 8
"""Pixels round everything, for the labels at the left, at most for the side of an image, between images."""
PAPER = 0.94
"""Grey value between the images: what is white in an image stands out from it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which images to draw, and where."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """digits, folder, cifar10 or whatever else `experiments.train` takes."""
    data_dir: Path | None = None
    """Where its files are."""
    seed: int = 0
    """Chooses the images and what happens to them."""
    out: Path = Path("experiments/results/augmentations.png")
    """The PNG."""


def main(config: Config) -> None:
    """Choose eight images, augment, draw."""
    import numpy as np

    from lowcost import data
    from lowcost.train.processes import devices

    devices()  # raises where there are none
    train = data.load(cast(data.DatasetName, config.dataset), data_dir=config.data_dir).train
    chosen = choose(train.labels, config.seed)
    images = train.images[chosen].astype(np.float32) / 255
    config.out.parent.mkdir(parents=True, exist_ok=True)
    draw(augmented(images, chosen, config.seed), config.out)
    print(f"{printable(config.out)}: training images {', '.join(map(str, chosen))} of {config.dataset}")


def choose(labels, seed: int):
    """Indices of eight images at random, all of different classes if there are as many."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    first.sort()
    return np.concatenate([order[first], np.delete(order, first)])[:8]


def augmented(images, indices, seed: int) -> dict[tuple[str, str], object]:
    """(function, its arguments or the like) → images, beginning with the images themselves.

    The square of cutout has a quarter of the image's side, 8 pixels for 32.

    Args:
        images: [B, H, W, C], floating point in [0, 1].
        indices: integers [B], the images' places in the data set.
        seed: of all random changes.
    """
    from collections import OrderedDict

    import jax

    from lowcost.data import augment

    hole = min(images.shape[1:3]) // 4

    @jax.jit
    def rows(key, images, indices):
        return OrderedDict(  # a plain dict would come back sorted
            {
                ("images", "as they are"): images,
                ("random_resized_crop", "low=0.8, high=1.2"): augment.random_resized_crop(key, images),
                ("random_translate", "pixels=2"): augment.random_translate(key, images),
                ("random_flip", "probability 1/2"): augment.random_flip(key, images),
                ("alternating_flip", "epoch 0"): augment.alternating_flip(key, images, indices, 0),
                ("alternating_flip", "epoch 1"): augment.alternating_flip(key, images, indices, 1),
                ("cutout", f"pixels={hole}"): augment.cutout(key, images, pixels=hole),
            }
        )

    return rows(jax.random.key(seed), images, indices)


def draw(rows: Mapping[tuple[str, str], object], path: Path) -> None:
    """A row for each entry, its label at the left; each pixel of an image becomes a square of whole pixels."""
    import numpy as np
    from matplotlib.figure import Figure

    pictures = np.clip(np.stack([np.asarray(images) for images in rows.values()]), 0, 1)
    count, columns, height, width, _ = pictures.shape
    pictures = np.rint(31 * pictures) / 31  # looks as with 255 and makes the file a third smaller
    scale = max(1, SIDE // max(height, width))
    height, width = scale * height + GAP, scale * width + GAP
    top, left = MARGIN, MARGIN + LABEL
    page = np.full((top + count * height + MARGIN - GAP, left + columns * width + MARGIN - GAP, 3), PAPER)
    for i, j in np.ndindex(count, columns):
        y, x = top + i * height, left + j * width
        page[y : y + height - GAP, x : x + width - GAP] = pictures[i, j].repeat(scale, 0).repeat(scale, 1)

    dpi = 128  # a power of two: no rounding between inches and pixels
    figure = Figure(figsize=(page.shape[1] / dpi, page.shape[0] / dpi), dpi=dpi)
    figure.figimage(page)
    for i, (name, note) in enumerate(rows):
        x, y = MARGIN / page.shape[1], 1 - (top + i * height + (height - GAP) / 2) / page.shape[0]
        figure.text(x, y, name, va="bottom", family="monospace", fontsize=8)
        figure.text(x, y, f"\n{note}", va="center", family="monospace", fontsize=7, color="0.4")
    save_figure(figure, path, format="png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    entry.run(main, Config)
