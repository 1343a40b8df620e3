"""Over the images of a batch, none of which any operator mixes: device by device, and on a CPU one after another."""

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH_AXIS = "data"
"""Name of the mesh axis over which a trainer shards the leading axis of the features."""


def per_shard(transform, dims, y, *weights):
    """`transform(y, *weights)` on each device's own part of the batch, y being [batch, ..., *grid, C] with dims axes.

    XLA's partitioner gathers the whole batch for an FFT (jax < 0.12), for a loop over images, and for a convolution
    under `jax.vmap`, although none of them mixes images.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if y.ndim <= dims + 1 or BATCH_AXIS not in mesh.axis_names:
        return transform(y, *weights)
    kind = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[BATCH_AXIS]
    if kind == AxisType.Manual or y.shape[0] % mesh.shape[BATCH_AXIS]:
        return transform(y, *weights)
    if kind == AxisType.Explicit and jax.typeof(y).sharding.spec[0] != BATCH_AXIS:
        return transform(y, *weights)  # there the type of y says how it lies: whole on every device

    def shard(y, *weights):
        # Said here, once: inside a loop over images the weights' gradient would be summed over devices for each image.
        return transform(y, *jax.lax.pcast(weights, BATCH_AXIS, to="varying"))

    batch, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    return jax.shard_map(shard, in_specs=(batch, *[whole] * len(weights)), out_specs=batch)(y, *weights)


def each_image(function, images, *, together=False):
    """`function` of every image: all at once, or on a CPU one after another.

    There what lies between two transforms stays in the cache, and the weights' gradient is added up in it.
    """
    if jax.default_backend() == "cpu" and not together:
        return jax.lax.map(function, images)
    return jax.vmap(function)(images)
