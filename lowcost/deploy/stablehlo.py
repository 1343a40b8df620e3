"""Writes a folded network of Section 4 as StableHLO: one file for CPU, CUDA and TPU, and any batch."""

import jax
import jax.numpy as jnp

from lowcost.deploy.folding import Folded
from lowcost.extras import needs_extra

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(folded: Folded) -> bytes:
    """`jax.export.deserialize(bytearray(...)).call(images)` → logits: returns the network as a StableHLO program.

    Not in the paper.

    Args:
        folded: from `fold` or `truncate`.

    Returns:
        The program for `PLATFORMS` and float32 images [batch, *grid, C] with any batch. JAX reads such files for at
        least six months.

    Raises:
        ImportError: the package flatbuffers is missing.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *folded.image_shape), jnp.float32)
    exported = jax.export.export(jax.jit(folded), platforms=PLATFORMS)(images)
    with needs_extra("export"):
        return bytes(exported.serialize())
