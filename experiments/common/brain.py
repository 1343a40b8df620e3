"""Reads the template MNI152, an average image of 152 brains, and divides it into slabs for training and for tests."""

from collections.abc import Sequence

import numpy as np

from lowcost import extras

CLASSES = ("grey matter", "white matter", "fluid")
"""Fluid is the rest of the brain: what the maps of grey and white matter leave."""
TRAINING = ((27, 47), (75, 95), (123, 143), (171, 191))
"""Slabs from back to front, in voxels of 1 mm; gaps of 8 voxels separate them from those of `TEST`."""
TEST = ((55, 67), (103, 115), (151, 163))
VALIDATION = TRAINING[2:3]
"""The slab of `TRAINING` on which the recipe was chosen."""
GAIN, OFFSET, NOISE = 0.25, 0.2, 0.1
"""Standard deviations of the changes of a patch: logarithm of its gain, offset, and noise of each voxel."""


def slabs(validate: bool) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
    """Returns the slabs for training and for tests; to validate, both are of `TRAINING`."""
    return ([slab for slab in TRAINING if slab not in VALIDATION], VALIDATION) if validate else (TRAINING, TEST)


def template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the image, the share of each class in each voxel, and where the brain is 1.

    Returns:
        float32 [X, Y, Z], [3, X, Y, Z] and [X, Y, Z].
    """
    with extras.needs_extra("volumes"):
        from nilearn import datasets

    loaders = [getattr(datasets, f"load_mni152_{x}") for x in ("template", "gm_template", "wm_template", "brain_mask")]
    image, grey, white, brain = (np.asarray(load(resolution=1).get_fdata(), np.float32) for load in loaders)
    return image, np.stack([grey, white, np.clip(1 - grey - white, 0, 1)]), brain


def perturbed(rng: np.random.Generator, patches: np.ndarray) -> np.ndarray:
    """Returns patches [N, *grid, C] as float32, each with its own gain, offset and noise."""
    gain, offset = rng.standard_normal((2, len(patches), *[1] * (patches.ndim - 1)))
    changed = np.exp(GAIN * gain) * patches + OFFSET * offset + NOISE * rng.standard_normal(patches.shape)
    return changed.astype(np.float32)
