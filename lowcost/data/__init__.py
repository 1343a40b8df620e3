"""Data sets, batches and augmentation.

    data = load("folder", data_dir="pictures", cache_dir="cache")
    indices = batch_indices(seed, step, len(data.train), batch_size)
    images = random_resized_crop(key, data.train.images[indices] / np.float32(255))

Knows nothing of networks or of training.
"""

from lowcost.data.augment import random_flip, random_resized_crop
from lowcost.data.batches import batch_indices, epoch_order
from lowcost.data.dataset import Dataset, Split
from lowcost.data.folders import folder
from lowcost.data.sources import digits, load

__all__ = [
    "Dataset",
    "Split",
    "batch_indices",
    "digits",
    "epoch_order",
    "folder",
    "load",
    "random_flip",
    "random_resized_crop",
]
