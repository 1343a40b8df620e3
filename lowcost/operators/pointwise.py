"""M(θ): the 1x1 convolution, which couples the channels of each pixel but not the pixels, Eq. (6)."""

import jax
import jax.numpy as jnp
from jax import Array

from lowcost.arguments import check_channels, check_floating, common_dtype, promote
from lowcost.batching import product_sharding
from lowcost.operators import sliding
from lowcost.primitive import primitive


def pointwise(matrix: Array, y: Array) -> Array:
    """(M y)_{i,o} = Σ_c y_{i,c} θ_{c,o}, the 1x1 convolution M(θ) of Eq. (6).

    Args:
        matrix: θ, [C_in, C_out], the transpose of the matrix printed in the paper.
        y: features, [..., C_in]; any number of grid and batch axes.

    Returns:
        Features [..., C_out] with the dtype of y, summed in at least float32.

    Raises:
        TypeError: matrix or y is not real floating point.
        ValueError: the matrix is not of rank 2, or the channels differ.

    Example:
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> print(pointwise(swap, jnp.array([[1.0, 2.0], [3.0, 4.0]])))
        [[2. 1.]
         [4. 3.]]
    """
    return _checked(matrix, "y", y, transpose=False)


def pointwise_adjoint(matrix: Array, z: Array) -> Array:
    """(Mᵀ z)_{i,c} = Σ_o θ_{c,o} z_{i,o}, the adjoint of `pointwise`, Eq. (6).

    Args:
        matrix: θ, [C_in, C_out].
        z: features, [..., C_out].

    Returns:
        Features [..., C_in] with the dtype of z.

    Raises:
        TypeError, ValueError: as in `pointwise`.
    """
    return _checked(matrix, "z", z, transpose=True)


def _checked(matrix, name, y, *, transpose):
    check_floating("matrix", matrix)
    check_floating(name, y)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must be [C_in, C_out], got shape {list(matrix.shape)}; reshape it to two axes")
    check_channels(name, y, "matrix", matrix, matrix.shape[1 if transpose else 0])
    factor = matrix.T if transpose else matrix
    dtype, sharding = common_dtype(promote(matrix), promote(y)), product_sharding(y, factor)
    if matrix.dtype != dtype or y.dtype != dtype or sharding:
        factors = [y, factor] if matrix.dtype == y.dtype else [y.astype(dtype), factor.astype(dtype)]
        product = jnp.dot(*factors, preferred_element_type=dtype, out_sharding=sharding)
        return product.astype(jnp.result_type(y))
    operator = _product_adjoint if transpose else _product
    return operator.bind(*sliding.varying_alike(matrix, y), precision=sliding.matmul_precision())


def _primitive(name, product, **options):
    def apply(a, b, *, precision):
        with jax.default_matmul_precision(precision):
            return product(a, b)

    return primitive(name, apply, ("precision",), **options)


def _gradient(y, z):
    """Σ_i y_i z_iᵀ. On a CPU XLA transposes the first factor; y comes first, because XLA would compute z a second time.

    JAX's own derivative of the product has z first.
    """
    points = tuple(range(y.ndim - 1))
    return jnp.tensordot(y, z, (points, points), preferred_element_type=y.dtype)


def _times(y, matrix):
    return jnp.dot(y, matrix, preferred_element_type=y.dtype)  # strongly typed


_product = _primitive("product", lambda matrix, y: _times(y, matrix), leading_axes=True)
_product_adjoint = _primitive("product_adjoint", lambda matrix, z: _times(z, matrix.T), leading_axes=True)
sliding.derive(_product, _product_adjoint, _primitive("product_gradient", _gradient))
