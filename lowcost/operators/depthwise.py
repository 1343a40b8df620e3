"""K_dw(θ): every channel has its own stencil, Eq. (5); its normal operator and the implicit inverse, Eq. (11)."""

import math
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lowcost.arguments import Boundary, ResolventBoundary, promote
from lowcost.methods import Method, SpectralMethod
from lowcost.operators.forms import Ways, apply, convolve, correlate, diffuse, resolvent
from lowcost.operators.sliding import UNROLLED, slide
from lowcost.real_dft import along
from lowcost.spectral import scale_spectrum, symbol_for


def depthwise(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """(K y)_{i,c} = Σ_j θ_{j,c} y_{i+j,c}, the depth-wise convolution K_dw(θ) of Eq. (5); j is 0 at the centre.

    Args:
        stencil: θ, [*window, C]; one to four window axes, each of any size up to the grid's.
        y: features, [..., *grid, C].
        boundary: what lies outside the grid: "periodic" as in the paper, "zeros", or its mirror image, which repeats
            the outermost point if "symmetric" and does not if "reflect".
        method: "fft", "matmul" (the DFT as a real matrix product), "direct" (the stencil applied on the grid,
            of up to three axes) or "auto" (the fastest according to measurements). All methods give the same result up
            to rounding.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, unknown boundary or method.

    Example:
        >>> import jax.numpy as jnp
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]  # y_{i+1} - y_i, one channel
        >>> print(depthwise(difference, jnp.array([0.0, 1.0, 4.0, 9.0])[:, None])[:, 0])
        [ 1.  3.  5. -9.]
    """
    return apply(convolve, DEPTHWISE, "depthwise", stencil, y, boundary, method)


def depthwise_adjoint(stencil: Array, z: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """K_dw(θ)ᵀ z: the adjoint of `depthwise` with the same boundary, ⟨K y, z⟩ = ⟨y, Kᵀ z⟩.

    Args, Returns, Raises: as in `depthwise`.
    """
    return apply(correlate, DEPTHWISE, "depthwise", stencil, z, boundary, method, adjoint=True)


def depthwise_diffusion(stencil: Array, y: Array, *, boundary: Boundary = "periodic", method: Method = "auto") -> Array:
    """-K_dw(θ)ᵀ K_dw(θ) y: the diffusion term of Eqs. (8) and (9), symmetric and negative semi-definite.

    Args, Returns, Raises: as in `depthwise`.
    """
    name = "diffusion" if boundary == "periodic" else "depthwise"
    return apply(_diffuse, DEPTHWISE, name, stencil, y, boundary, method)


def depthwise_resolvent(
    stencil: Array,
    y: Array,
    h: float | Array,
    *,
    boundary: ResolventBoundary = "periodic",
    method: SpectralMethod = "auto",
) -> Array:
    """(I + h KᵀK)⁻¹ y with K = K_dw(θ): the implicit diffusion of Eq. (11).

    It never amplifies: its eigenvalues 1 / (1 + h|λ|²) lie in (0, 1] for every θ and h ≥ 0.

    With boundary="symmetric" opposite edges do not meet: y ↦ DCT⁻¹(s ⊙ DCT y) with the cosine transform DCT-II. Here
    s_k = 2⁻ᵈ Σ_σ 1 / (1 + h|λ(σω)|²) at the frequencies ω = πk/n of each axis, k = 0, …, n - 1, averaged over all
    changes of sign σ. It is symmetric, and never amplifies. If each channel's stencil is even or odd along each axis,
    it is (I + h KᵀK)⁻¹ with K = `depthwise(..., boundary="symmetric")`. For other stencils it is what (I + h KᵀK)⁻¹
    does to the mirror image of y on the periodic grid of 2n points, averaged over the reflections of that grid. Of all
    operators that the DCT diagonalises, it is the nearest to the one without this average, in the Frobenius norm.

    Args:
        stencil: θ, [*window, C].
        y: features, [..., *grid, C].
        h: time step, h ≥ 0; or one for each channel, [C].
        boundary: "periodic" as in the paper, or "symmetric".
        method: "fft", "matmul" or "auto"; not "direct", because the inverse is not a small stencil.

    Returns:
        Features with the shape and dtype of y.

    Raises:
        TypeError: stencil or y is not real floating point.
        ValueError: the stencil is larger than the grid, the channels differ, h < 0, not finite or of another shape,
            unknown boundary or method.

    Example:
        >>> import jax.numpy as jnp
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]
        >>> y = jnp.array([1.0, 0.0, 0.0, 0.0])[:, None]
        >>> print(depthwise_resolvent(difference, y, 1.0)[:, 0].round(3))  # smoother, with the same mean
        [0.467 0.2   0.133 0.2  ]
    """
    if jnp.ndim(h):
        if jnp.shape(h) != jnp.shape(stencil)[-1:]:
            got = f"shape {list(jnp.shape(h))} for a stencil of shape {list(jnp.shape(stencil))}"
            raise ValueError(f"h must be a number, or one for each channel, got {got}; call it once for each time step")
        h = jnp.expand_dims(h, range(jnp.ndim(stencil) - 1))
    name = "real" if boundary == "periodic" else "mirrored"
    return resolvent(DEPTHWISE, name, stencil, y, h, boundary, method)


def _filter(function, stencil, method, y, *, mirrored=False):
    grid = y.shape[-stencil.ndim : -1]
    factors = function(symbol_for(method, stencil, grid, mirrored=mirrored))
    return scale_spectrum(y, factors, method, mirrored=len(grid) * mirrored)


def _diffuse(y, stencil, ways, boundary, method):
    """−KᵀK y; "direct" on a GPU by the stencil of KᵀK, which reads and writes the features once."""
    window, grid = stencil.shape[:-1], y.shape[-stencil.ndim : -1]
    general = partial(diffuse, ways=ways, boundary=boundary, method=method)
    size = [2 * m - 1 for m in window]
    fits = math.prod(size) <= UNROLLED and all(map(operator.le, size, grid))
    if method != "direct" or boundary != "periodic" or not fits:
        return general(y, stencil)
    return jax.lax.platform_dependent(y, stencil, cpu=general, tpu=general, default=_diffuse_once)


def _diffuse_once(y, stencil):
    return -slide(_normal_stencil(promote(stencil)), promote(y), "periodic").astype(jnp.result_type(y))


def _normal_stencil(stencil):
    """(θ⋆θ)_j = Σ_i θ_i θ_{i+j}, the stencil of KᵀK, [*(2 window - 1), C], by one matrix product."""
    window, channels = stencil.shape[:-1], stencil.shape[-1]
    size = [2 * m - 1 for m in window]
    points = np.indices(window).reshape(len(window), -1)
    offsets = points[:, None] - points[:, :, None] + np.subtract(window, 1)[:, None, None]
    place = np.ravel_multi_index(tuple(offsets), size).ravel()  # of θ_i θ_{i'}, by i and i'
    flat = stencil.reshape(-1, channels)
    products = (flat[:, None] * flat[None]).reshape(-1, channels)
    sums = (np.arange(math.prod(size))[:, None] == place).astype(stencil.dtype)
    return along(sums, products, 0).reshape(*size, channels)


DEPTHWISE = Ways(_filter)
