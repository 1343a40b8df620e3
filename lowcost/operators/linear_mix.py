"""K_lm(θ¹, θ²) = K_dw(θ¹) + M(θ²): a convolution that keeps only its diagonal blocks and its 1x1 couplings, Eq. (7)."""

import jax.numpy as jnp
from jax import Array

from lowcost.arguments import Boundary, check_floating, promote
from lowcost.methods import Method
from lowcost.operators.depthwise import depthwise, depthwise_adjoint
from lowcost.operators.pointwise import pointwise, pointwise_adjoint


def linear_mix(
    stencil: Array, matrix: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto"
) -> Array:
    """K_dw(θ¹) y + M(θ²) y: the LinearMix convolution K_lm of Eq. (7).

    The diagonal of M is redundant, because it acts like the centres of the stencils. The weights that the paper's
    Table 2 counts include this diagonal.

    Args:
        stencil: θ¹, [*window, C].
        matrix: θ², [C, C].
        y: features, [..., *grid, C].
        boundary, method: of the depth-wise part, as in `depthwise`.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil, matrix or y is not real floating point.
        ValueError: as in `depthwise`; or the matrix is not [C, C].
    """
    promoted = _checked(stencil, matrix, "y", y)
    mixed = depthwise(stencil, promoted, boundary=boundary, method=method) + pointwise(matrix, promoted)
    return mixed.astype(jnp.result_type(y))


def linear_mix_adjoint(
    stencil: Array, matrix: Array, z: Array, *, boundary: Boundary = "periodic", method: Method = "auto"
) -> Array:
    """K_dw(θ¹)ᵀ z + M(θ²)ᵀ z: the adjoint of `linear_mix` with the same boundary.

    Args, Returns, Raises: as in `linear_mix`.
    """
    promoted = _checked(stencil, matrix, "z", z)
    mixed = depthwise_adjoint(stencil, promoted, boundary=boundary, method=method) + pointwise_adjoint(matrix, promoted)
    return mixed.astype(jnp.result_type(z))


def _checked(stencil, matrix, name, y):
    """Returns y promoted to float32, after the checks that the two terms do not make."""
    for argument, value in (("stencil", stencil), ("matrix", matrix), (name, y)):
        check_floating(argument, value)
    if matrix.shape != 2 * stencil.shape[-1:]:
        raise ValueError(
            f"matrix must be [C, C] for the C channels of the stencil, got shape {list(matrix.shape)} with a stencil "
            f"of shape {list(stencil.shape)}; pass one weight for each pair of channels"
        )
    return promote(y)
