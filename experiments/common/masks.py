"""Draws and writes masks, the class of each point of an image, in NumPy and Pillow."""

import io
from pathlib import Path

import numpy as np

from experiments.common.files import write_whole
from lowcost.data import IGNORED


def _colours() -> np.ndarray:
    """Returns the colours of PASCAL VOC's masks, uint8 [256, 3]: black for class 0, others for every other number."""
    numbers = np.arange(256)[:, None]
    bits = [(numbers >> (3 * i + np.arange(3)) & 1) << (7 - i) for i in range(3)]
    return np.bitwise_or.reduce(bits).astype(np.uint8)


COLOURS = _colours()


def translucent(mask: np.ndarray) -> np.ndarray:
    """Returns the colour of each point, float [*grid, 4] in [0, 1]: half transparent, and clear without a label."""
    opacity = np.where(mask == IGNORED, 0, 0.5)
    return np.concatenate([COLOURS[mask] / 255, opacity[..., None]], axis=-1)


def suffix(grid: tuple[int, ...]) -> str:
    """Returns the suffix of mask files: images of two axes are PNG files, signals and volumes .npy files."""
    return ".png" if len(grid) == 2 else ".npy"


def write(path: Path, mask: np.ndarray) -> None:
    """Writes uint8 [*grid]: as a PNG whose palette indices are the classes, or as an array."""
    content = io.BytesIO()
    if path.suffix == ".png":
        from PIL import Image

        image = Image.fromarray(mask)
        image.putpalette(COLOURS.tobytes())
        image.save(content, "PNG")
    else:
        np.save(content, mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
