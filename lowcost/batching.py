"""Applies functions of one image to a batch: on each device's own images, and on a CPU to one image after another."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

BATCH_AXIS = "data"
"""Name of the mesh axis over which a trainer shards the leading axis of the features."""

_LOOPS: ContextVar[bool] = ContextVar("loops", default=True)
"""Whether a CPU takes one image after another."""


def per_shard(transform, dims, y, *weights, **options):
    """Computes `transform(y, *weights, **options)` on each device's own images.

    On mesh axes of type Explicit the sharding of y determines which images each device has. Sharded grids, channels and
    weights are gathered, and a result shaped as y is sharded as y. Axes of type Auto hide the sharding from a traced
    function; the batch is then assumed to be sharded along `BATCH_AXIS` if the mesh has that axis.

    Without this function XLA's partitioner gathers the whole batch for an FFT (jax < 0.12), for a loop over images, and
    for a convolution under `jax.vmap`, although none of them mixes images. On Explicit axes JAX rejects the loop.

    Args:
        transform: a function that a module defines, because compiled programs are cached by it.
        dims: number of grid axes.
        y: features, [batch, ..., *grid, C].
        weights: arrays, the same on every device.
        options: hashable keyword arguments of `transform`.
    """
    mesh, specs = layout(y, *weights)
    typed = batch = PartitionSpec(*specs[0][: max(y.ndim - dims - 1, 0)])
    if batch and not batch[0] and BATCH_AXIS in mesh.auto_axes and y.shape[0] % mesh.shape[BATCH_AXIS] == 0:
        batch = PartitionSpec(BATCH_AXIS, *batch[1:])
    if not any(map(any, (batch, *specs))):
        return transform(y, *weights, **options)
    return _sharded(transform, tuple(options.items()), mesh, typed, batch, y, *weights)


@partial(jax.jit, static_argnums=range(5))  # outside of any jit each operation would be compiled separately
def _sharded(transform, options, mesh, typed, batch, y, *weights):
    def shard(y, *weights):
        # Cast before any loop over images, in which the weights' gradient would be summed over devices for each image.
        return transform(y, *jax.lax.pcast(weights, _axes(batch), to="varying"), **dict(options))

    whole = [PartitionSpec()] * len(weights)
    shard = jax.shard_map(shard, mesh=mesh, in_specs=(batch, *whole), out_specs=batch)
    if not mesh.explicit_axes:
        return shard(y, *weights)
    result = shard(*map(jax.reshard, (y, *weights), [NamedSharding(mesh, spec) for spec in (typed, *whole)]))
    return jax.reshard(result, NamedSharding(mesh, jax.typeof(y).sharding.spec)) if result.shape == y.shape else result


def layout(*arrays):
    """Returns the mesh of the arrays, and the axes of type Explicit along which each array is sharded."""
    shardings = [jax.typeof(x).sharding for x in arrays]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = next((s.mesh for s in shardings if not s.mesh.empty), mesh)
    return mesh, [tuple(s.spec) for s in shardings]


def product_sharding(y, matrix):
    """Returns the sharding of `y @ matrix`, or None if no Explicit axis is in use; JAX leaves some cases to the caller.

    Rows are sharded as those of y. Columns are sharded as those of the matrix if no row uses the same mesh axes.
    """
    mesh, (rows, columns) = layout(y, matrix)
    free = set(_axes(columns[-1:])).isdisjoint(_axes(rows[:-1]))
    spec = PartitionSpec(*rows[:-1], columns[-1] if free else None)
    return NamedSharding(mesh, spec) if any(rows + columns) else None


def _axes(spec):
    return tuple(jax.tree.leaves(tuple(spec)))


def each_image(function, rank, *features, all_at_once=False):
    """Applies `function` to the images of features [batch, ..., *image]; an image has `rank` axes.

    On a CPU one image is processed after another, unless `all_at_once`. The platform is chosen when a program is
    lowered.
    """
    at_once = partial(_over_images, jax.vmap, function, rank)
    if all_at_once:
        return at_once(*features)
    return jax.lax.platform_dependent(*features, cpu=partial(one_by_one, function, rank), default=at_once)


def one_by_one(function, rank, *features):
    """Applies `function` to one image after another.

    On a CPU the features between two transforms then stay in the cache, and so does the sum of the weights' gradient.
    """
    return _over_images(_map, function, rank, *features)


def summed_one_by_one(function, rank, *features):
    """Sums `function` over the images, without storing its results, which may be larger than the features."""
    images = _images(rank, features)
    result = jax.eval_shape(function, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in images))
    zero = jnp.asarray(sum(jnp.sum(x[:0]) for x in images), result.dtype)  # varies over devices like the images
    return _sum(function, jnp.broadcast_to(zero, result.shape), images)


def _sum(function, zero, images):
    if not _LOOPS.get():
        return zero + jax.vmap(function)(*images).sum(0)
    return jax.lax.scan(lambda total, one: (total + function(*one), None), zero, images)[0]


def _images(rank, features):
    return [x.reshape(math.prod(x.shape[:-rank]), *x.shape[-rank:]) for x in features]


def _map(function):
    if not _LOOPS.get():
        return jax.vmap(function)
    return lambda *images: jax.lax.map(lambda one: function(*one), images)


@contextmanager
def without_loops() -> Iterator[None]:
    """Lets programs for CPUs that are traced meanwhile compute all images at once, e.g. to count their operations.

    XLA counts the operations in the body of a loop once.
    """
    jax.clear_caches()
    token = _LOOPS.set(False)
    try:
        yield
    finally:
        _LOOPS.reset(token)
        jax.clear_caches()


def infer(net, variables, images):
    """net.apply(variables, images, train=False), up to rounding. Call it inside `jax.jit`.

    Only the normalisations of training mix images. Where several devices of a CPU share the batch along `BATCH_AXIS`
    (`lowcost.train.mesh.use_every_core`), one image therefore passes through all layers before the next one starts, so
    that its features stay in the cache. Elsewhere each layer is applied to all images at once.

    Args:
        net: a Flax module whose outputs for an image depend on no other image, such as the networks of Section 4.
        variables: {"params", "batch_stats"} of the module.
        images: as the module takes them, [B, *grid, C].

    Returns:
        The outputs, e.g. logits [B, K].
    """

    def all_at_once(variables, images):
        return net.apply(variables, images, train=False)

    def one_after_another(variables, images):
        def of_one(image):
            return jax.tree.map(lambda x: x[0], all_at_once(variables, image[None]))

        return _map(of_one)(images)

    mesh = jax.sharding.get_abstract_mesh()
    number = mesh.shape.get(BATCH_AXIS, 1)
    shared = mesh.auto_axes == (BATCH_AXIS,) == mesh.axis_names and number > 1 and len(images) % number == 0
    if not shared or not isinstance(images, jax.core.Tracer):  # outside of a jit each call would be compiled anew
        return all_at_once(variables, images)
    batch = PartitionSpec(BATCH_AXIS)
    by_device = jax.shard_map(one_after_another, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch)
    return jax.lax.platform_dependent(variables, images, cpu=by_device, default=all_at_once)


def _over_images(over, function, rank, *features):
    result = over(function)(*_images(rank, features))
    return result.reshape(*features[0].shape[:-rank], *result.shape[1:])
