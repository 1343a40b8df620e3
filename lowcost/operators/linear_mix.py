"""K_lm(θ¹, θ²) = K_dw(θ¹) + M(θ²): a convolution that keeps only its diagonal blocks and its 1x1 couplings, Eq. (7)."""

from functools import partial

import jax.numpy as jnp
from jax import Array

from lowcost.arguments import Boundary, check_floating, common_dtype, promote
from lowcost.methods import MixMethod
from lowcost.operators.boundary import reach
from lowcost.operators.depthwise import DEPTHWISE
from lowcost.operators.forms import apply, convolve, correlate
from lowcost.operators.fully_coupled import COUPLED
from lowcost.operators.mixing import mix, mix_adjoint
from lowcost.operators.pointwise import pointwise, pointwise_adjoint


def linear_mix(
    stencil: Array, matrix: Array, y: Array, *, boundary: Boundary = "periodic", method: MixMethod = "auto"
) -> Array:
    """K_dw(θ¹) y + M(θ²) y: the LinearMix convolution K_lm of Eq. (7).

    The diagonal of M is redundant, because it acts like the centres of the stencils. The weights that the paper's
    Table 2 counts include this diagonal.

    Args:
        stencil: θ¹, [*window, C].
        matrix: θ², [C, C].
        y: features, [..., *grid, C].
        boundary: as in `depthwise`.
        method: how to compute the depth-wise part, as in `depthwise`; with "direct" a CPU computes both parts of an
            image together. "coupled" computes both as one fully coupled convolution, which needs more operations but
            moves fewer bytes. The 1x1 part always uses the precision of `jax.default_matmul_precision`. With "coupled"
            the depth-wise part uses it too. "auto" may choose "coupled"; "direct" keeps the depth-wise part in full
            precision.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil, matrix or y is not real floating point.
        ValueError: as in `depthwise`; or the matrix is not [C, C].
    """
    return _apply(_mix, stencil, matrix, y, boundary, method)


def linear_mix_adjoint(
    stencil: Array, matrix: Array, z: Array, *, boundary: Boundary = "periodic", method: MixMethod = "auto"
) -> Array:
    """K_dw(θ¹)ᵀ z + M(θ²)ᵀ z: the adjoint of `linear_mix` with the same boundary.

    Args, Returns, Raises: as in `linear_mix`.
    """
    return _apply(_mix_adjoint, stencil, matrix, z, boundary, method)


def _apply(form, stencil, matrix, y, boundary, method):
    check_floating("stencil", stencil)
    check_floating("matrix", matrix)
    if matrix.shape != 2 * stencil.shape[-1:]:
        raise ValueError(
            f"matrix must be [C, C] for the C channels of the stencil, got shape {list(matrix.shape)} with a stencil "
            f"of shape {list(stencil.shape)}; pass one weight for each pair of channels"
        )
    return apply(form, DEPTHWISE, "linear_mix", stencil, y, boundary, method, matrix, adjoint=form is _mix_adjoint)


def _mix(y, stencil, matrix, kind, boundary, method, convolution=convolve, product=pointwise, at_once=mix):
    promoted = promote(y)
    if method == "direct":
        mixed = at_once(stencil, matrix, promoted, boundary)
    elif method == "coupled":
        mixed = convolution(promoted, as_fully_coupled(stencil, matrix), COUPLED, boundary, "direct")
    else:
        mixed = convolution(promoted, stencil, kind, boundary, method) + product(matrix, promoted)
    return mixed.astype(jnp.result_type(y))


_mix_adjoint = partial(_mix, convolution=correlate, product=pointwise_adjoint, at_once=mix_adjoint)


def as_fully_coupled(stencil: Array, matrix: Array) -> Array:
    """Returns the stencil [*window, C, C] with which `fully_coupled` is K_lm(θ¹, θ²)."""
    *window, _ = stencil.shape
    stencil, matrix = promote(stencil), promote(matrix)
    dtype = common_dtype(stencil, matrix)
    diagonal = jnp.vectorize(jnp.diag, signature="(c)->(c,c)")(stencil.astype(dtype))
    centre = jnp.expand_dims(matrix.astype(dtype), range(len(window)))
    return diagonal + jnp.pad(centre, [*reach(window), (0, 0), (0, 0)])
