"""K_lm(θ¹, θ²) = K_dw(θ¹) + M(θ²): a convolution masked to its diagonal blocks and 1x1 couplings, Eq. (7)."""

import jax
import jax.numpy as jnp

from lowcost.arguments import check_features, check_floating, promote
from lowcost.operators.depthwise import depthwise, depthwise_adjoint
from lowcost.operators.pointwise import pointwise, pointwise_adjoint


def linear_mix(
    stencil: jax.Array, matrix: jax.Array, y: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K_dw(θ¹) y + M(θ²) y: Eq. (7).

    The diagonal of M adds to the centres of the stencils; Table 2's weight counts keep it.

    Args:
        stencil: θ¹, [*window, C].
        matrix: θ², [C, C].
        y: features, [..., *grid, C].
        boundary, method: of the depth-wise part, as `depthwise`.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError, ValueError: as `depthwise`; ValueError also where the matrix is not [C, C].
    """
    _check("y", y, stencil, matrix)
    wide = promote(y)
    mixed = depthwise(stencil, wide, boundary=boundary, method=method) + pointwise(matrix, wide)
    return mixed.astype(jnp.result_type(y))


def linear_mix_adjoint(
    stencil: jax.Array, matrix: jax.Array, z: jax.Array, *, boundary: str = "periodic", method: str = "auto"
) -> jax.Array:
    """K_dw(θ¹)ᵀ z + M(θ²)ᵀ z: the adjoint of `linear_mix` with the same boundary.

    Args, Returns, Raises: as `linear_mix`.
    """
    _check("z", z, stencil, matrix)
    wide = promote(z)
    mixed = depthwise_adjoint(stencil, wide, boundary=boundary, method=method) + pointwise_adjoint(matrix, wide)
    return mixed.astype(jnp.result_type(z))


def _check(name, y, stencil, matrix):
    check_features(name, y, stencil)
    check_floating("matrix", matrix)
    c = stencil.shape[-1]
    if matrix.shape != (c, c):
        raise ValueError(f"matrix must be [C, C] = {[c, c]} as the stencil has C = {c}, got {list(matrix.shape)}")
