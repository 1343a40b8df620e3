"""Reads data sets, and makes and augments batches::

    data = load("folder", data_dir="images", cache_dir="cache")
    indices = batch_indices(seed, step, len(data.train), batch_size)
    images = random_resized_crop(key, data.train.images[indices] / np.float32(255))  # of uint8 images

Depends on neither networks nor training.
"""

from typing import TYPE_CHECKING

from lowcost.data.arrays import read_arrays
from lowcost.data.batches import batch_indices, epoch_order
from lowcost.data.dataset import Change, Dataset, Split
from lowcost.data.folders import folder
from lowcost.data.sources import SOURCES, DatasetName, digits, load, published
from lowcost.data.tasks import IGNORED, Task
from lowcost.lazy import attributes
from lowcost.scaling import Moments, from_standard_units, to_standard_units, to_unit_range

if TYPE_CHECKING:
    from lowcost.data.augment import (
        alternating_flip,
        cutmix,
        cutout,
        jitter,
        random_flip,
        random_resized_crop,
        random_scale,
        random_translate,
    )

__all__ = ["IGNORED", "SOURCES", "Change", "Dataset", "DatasetName", "Moments", "Split", "Task"]
__all__ += ["digits", "folder", "load", "published", "read_arrays"]
__all__ += ["batch_indices", "epoch_order"]
__all__ += ["alternating_flip", "cutmix", "cutout", "jitter", "random_flip", "random_resized_crop", "random_scale"]
__all__ += ["random_translate"]
__all__ += ["from_standard_units", "to_standard_units", "to_unit_range"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = attributes(__name__, __all__, ["augment"])
