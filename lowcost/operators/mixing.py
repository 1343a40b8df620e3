"""Applies both parts of K_lm at once, as primitives of JAX: on a CPU an image then stays in the cache for both.

⟨z, K_lm(θ¹, θ²) y⟩ is linear in y, in z and in the weights, here one array: a row of θ¹ for each point of the stencil,
and below these the rows of θ². The primitives are those of `sliding`, with these weights.
"""

import jax
import jax.numpy as jnp

from lowcost.arguments import common_dtype, promote
from lowcost.batching import one_by_one, summed_one_by_one
from lowcost.operators import sliding
from lowcost.operators.boundary import extend
from lowcost.primitive import primitive


def mix(stencil: jax.Array, matrix: jax.Array, y: jax.Array, boundary: str) -> jax.Array:
    """K_dw(θ¹) y + M(θ²) y.

    Args:
        stencil: θ¹, [*window, C].
        matrix: θ², [C, C].
        y: features, [..., *grid, C], of 32 bits or more.
        boundary: "periodic", "zeros", "reflect" or "symmetric".

    Returns:
        [..., *grid, C].
    """
    return _bind(_mix, stencil, matrix, y, boundary)


def mix_adjoint(stencil: jax.Array, matrix: jax.Array, z: jax.Array, boundary: str) -> jax.Array:
    """K_dw(θ¹)ᵀ z + M(θ²)ᵀ z, with the arguments of `mix`."""
    return _bind(_mix_adjoint, stencil, matrix, z, boundary)


def _bind(operator, stencil, matrix, y, boundary):
    dtype = common_dtype(promote(matrix), promote(y))
    weights = jnp.concatenate([stencil.reshape(-1, stencil.shape[-1]).astype(dtype), matrix.astype(dtype)])
    how = {"boundary": boundary, "window": stencil.shape[:-1], "precision": sliding.matmul_precision()}
    return operator.bind(*sliding.varying_alike(weights, y.astype(dtype)), **how)


def _primitive(name, form, product):
    def apply(weights, y, *, boundary, window, precision):
        grid = y.shape[-1 - len(window) : -1]

        def parts(weights):
            return weights[: -y.shape[-1]].reshape(*window, -1), weights[-y.shape[-1] :]

        def by_image(weights, y):
            stencil, matrix = parts(weights)
            convolve = form(sliding.sums, extend, stencil, boundary, grid)
            return one_by_one(lambda image: convolve(image) + product(image, matrix), len(grid) + 1, y)

        def by_xla(extension, weights, y):
            stencil, matrix = parts(weights)
            return form(sliding.sums_by_xla, extension, stencil, boundary, grid)(y) + product(y, matrix)

        return sliding.lowered(by_image, by_xla, precision, weights, y)

    return primitive(name, apply, ("boundary", "window", "precision"), leading_axes=True)


def _gradient(y, z, *, boundary, window, precision):
    """∂⟨z, K_lm y⟩ by the weights, of a batch."""
    shape, grid = (*window, y.shape[-1]), y.shape[-1 - len(window) : -1]

    def joined(stencil, y, z):
        axes = tuple(range(y.ndim - 1))
        return jnp.concatenate([stencil.reshape(-1, y.shape[-1]), jnp.tensordot(y, z, (axes, axes))])

    def by_image(y, z):
        gradient, _ = sliding.gradient_of_image(shape, grid, boundary)
        return summed_one_by_one(lambda y, z: joined(gradient(y, z), y, z), len(grid) + 1, y, z)

    def by_xla(extension, y, z):
        return joined(sliding.gradient_by_xla(extension, y, z, boundary, shape, grid), y, z)

    return sliding.lowered(by_image, by_xla, precision, y, z)


_mix = _primitive("mix", sliding.convolution, jnp.matmul)
_mix_adjoint = _primitive("mix_adjoint", sliding.correlation, lambda z, matrix: jnp.matmul(z, matrix.T))
sliding.derive(_mix, _mix_adjoint, primitive("mix_gradient", _gradient, ("boundary", "window", "precision")))
