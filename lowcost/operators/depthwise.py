"""K_dw(θ): every channel has its own stencil, Eq. (5); its normal operator and the implicit inverse, Eq. (11)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from lowcost.arguments import Boundary, ResolventBoundary, check_time_step, promote
from lowcost.methods import Method, SpectralMethod
from lowcost.operators.boundary import extend, reach
from lowcost.operators.forms import StencilKind, apply, convolve, correlate, diffuse, resolvent
from lowcost.operators.sliding import slide
from lowcost.spectral import scale_spectrum, symbol_for

LARGEST_NORMAL_STENCIL = 49
"""Points of the stencil of KᵀK up to which a GPU applies it, in place of K and Kᵀ with fewer operations."""


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
    operator = "diffusion" if boundary == "periodic" else "depthwise"
    return apply(_diffuse, DEPTHWISE, operator, stencil, y, boundary, method)


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
        check_time_step(h)  # whose numbers are hidden below if this is traced
        h = jnp.expand_dims(h, range(jnp.ndim(stencil) - 1))
    operator = "real" if boundary == "periodic" else "mirrored"
    return resolvent(DEPTHWISE, operator, stencil, y, h, boundary, method)


def _filter(function, stencil, method, y, *, mirrored=False):
    grid = y.shape[-stencil.ndim : -1]
    factors = function(symbol_for(method, stencil, grid, mirrored=mirrored))
    return scale_spectrum(y, factors, method, mirrored=len(grid) * mirrored)


def _diffuse(y, stencil, kind, boundary, method):
    """−KᵀK y; "direct" on a GPU by the stencil of KᵀK, which reads and writes the features once.

    The rounding error is then relative to ‖K‖² ‖y‖, also where K y = 0.
    """
    size, grid = [2 * m - 1 for m in stencil.shape[:-1]], y.shape[-stencil.ndim : -1]
    general = partial(diffuse, kind=kind, boundary=boundary, method=method)
    fits = math.prod(size) <= LARGEST_NORMAL_STENCIL and all(m <= n for m, n in zip(size, grid, strict=True))
    if method != "direct" or boundary != "periodic" or not fits:
        return general(y, stencil)
    return jax.lax.platform_dependent(y, stencil, cpu=general, tpu=general, default=_diffuse_once)


def _diffuse_once(y, stencil):
    θ = promote(stencil)
    around = extend(θ, reach(θ.shape[:-1], mirrored=True), "zeros")
    normal = slide(θ, around, "zeros")  # Σ_i θ_i θ_{i+j}, the stencil of KᵀK
    return -slide(normal, promote(y), "periodic").astype(jnp.result_type(y))


DEPTHWISE = StencilKind(_filter)
