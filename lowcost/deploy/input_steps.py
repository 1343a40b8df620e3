"""States the steps from an image file or an array to the input of a network, for the metadata of exported files."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowcost.arguments import check_choice
from lowcost.data.dataset import DTYPES

RESAMPLING = "linear interpolation between the points of the signal, whose first and last points stay"
"""Step of `preprocessing` where training resampled every signal to one length."""
MASK = "append points of zeros up to the length of image_shape, then a channel: 1 on the points, 0 on the zeros"
"""Step of `preprocessing` for networks whose last channel is a mask."""


def preprocessing(
    image_shape: Sequence[int],
    dtype: str = "uint8",
    *,
    standardises: bool = False,
    masked: bool = False,
    length: int | None = None,
) -> str:
    """Returns, as JSON, the steps from an image file or an array to the input of a network, in their order.

    docs/deploy.md has them in NumPy and Pillow, and a test compares both with `lowcost.data.decoding.read_image`.

    Args:
        image_shape: [*grid, C]. For uint8 [H, W, C], where C is 1 or 3, the steps begin with those for image files.
        dtype: of the numbers, one of `lowcost.data.dataset.DTYPES`.
        standardises: whether the network has moments.
        masked: whether the last channel is a mask.
        length: number of points to which every signal is resampled, or None.

    Raises:
        ValueError: an unknown dtype.
    """
    check_choice("dtype", dtype, DTYPES)
    last: dict[str, Any] = {} if length is None else {"length": length, "resampling": RESAMPLING}
    last |= {"range": _range(dtype, standardises)} | ({"mask": MASK} if masked else {})
    last["input"] = "float32 [batch, *image_shape]"
    if len(image_shape) != 3 or image_shape[2] not in (1, 3) or dtype != "uint8":
        return json.dumps(last)
    height, width, channels = image_shape
    side = 2 * max(height, width)
    steps = {
        "jpeg": f"Pillow's draft of {side} x {side}: decode at 1/2, 1/4 or 1/8 of the size where that is as large",
        "orientation": "rotate upright by the EXIF orientation",
        "depth": "divide grey levels of 16 bits by 256, rounded down",
        "transparency": "paste on white",
        "colour": "convert to RGB",
        "crop": "cut to the largest centred part with the proportions of the size",
        "size": [height, width],
        "filter": "Lanczos, as Pillow's ImageOps.fit",
        "channels": "RGB" if channels == 3 else 'grey, as Pillow\'s convert("L")',
    }
    return json.dumps(steps | last)


def _range(dtype: str, standardises: bool) -> str:
    """Returns how numbers are scaled, as `lowcost.scaling.to_unit_range` does."""
    last = f"the network itself {'standardises' if standardises else 'normalises'}"
    if dtype == "float32":
        return f"float32 as they are; {last}"
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    shift = f"add {-low} and " if low else ""
    return f"{shift}divide by {high - low}, to [0, 1]; {last}"
