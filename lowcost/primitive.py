"""Makes linear functions primitives of JAX with stated derivatives, because JAX's own would be slow.

Unlike a `jax.custom_vjp`, a primitive supports forward and reverse mode of every order, `jax.vmap` and `jax.shard_map`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec


def primitive(
    name: str, function: Callable[..., jax.Array], options: Sequence[str], *, leading_axes: bool = False
) -> Primitive:
    """Returns a primitive that computes function(*arrays, **options); the caller defines its derivatives.

    Args:
        name: its name in a jaxpr.
        function: takes arrays, and hashable options.
        options: names of the options.
        leading_axes: whether the last array and the result may have any number of leading axes. `jax.vmap` over that
            array alone then adds one; otherwise it maps the function.
    """
    result = Primitive(name)
    result.def_impl(jax.jit(function, static_argnames=options))
    result.def_abstract_eval(lambda *arrays, **how: jax.make_jaxpr(partial(function, **how))(*arrays).out_avals[0])
    mlir.register_lowering(result, mlir.lower_fun(function, multiple_results=False))

    def batch(arrays, axes, **how):
        adds_axis = leading_axes and all(axis is None for axis in axes[:-1])

        def apply(*arrays, axes=axes):
            if adds_axis:
                return result.bind(*arrays[:-1], jnp.moveaxis(arrays[-1], axes[-1], 0), **how)
            return jax.vmap(partial(function, **how), in_axes=axes)(*arrays)

        for mapped, axis in zip(arrays, axes, strict=True):
            if axis is not None and (name := jax.typeof(mapped).sharding.spec[axis]):
                break
        else:
            return apply(*arrays), 0
        # On Explicit axes JAX rejects the reshapes and loops inside, and a grouped convolution of a shared array.
        if not adds_axis:
            size = mapped.shape[axis]
            arrays = [jnp.stack([x] * size) if i is None else x for x, i in zip(arrays, axes, strict=True)]
            axes = [i or 0 for i in axes]
        out = NamedSharding(jax.typeof(mapped).sharding.mesh, PartitionSpec(name))
        return jax.sharding.auto_axes(partial(apply, axes=axes), out_sharding=out)(*arrays), 0

    batching.primitive_batchers[result] = batch
    return result
