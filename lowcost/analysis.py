"""Computes spectra, norms, stable steps and Green's functions of the operators of Section 3 from impulse responses.

In the Fourier basis, a linear map y ↦ K y of features [*grid, C] that commutes with shifts of the grid is one small
matrix per frequency. The responses to an impulse in each channel determine these matrices. The functions below
therefore take the map itself: an operator with its weights, e.g. `partial(depthwise, stencil)`, an adjoint, a
resolvent, or a composition of these.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import check_time_step
from lowcost.spectral import root, squared_modulus, symbol
from lowcost.time_stepping import Integrator, IntegratorName, Map, as_integrator

LARGEST_MATRIX = 2**14
"""Number of features, over grid and channels, up to which `operator_matrix` builds a dense matrix."""

LARGEST_ERROR = 1e-2
"""Relative error up to which a map counts as linear and shift-invariant; loose, because it may compute in bfloat16."""


def transfer_matrix(operator: Map, grid: Sequence[int], channels: int) -> jax.Array:
    """K̂_k = Σ_x G_x exp(-2πi k·x / n), G the impulse responses: the block of K at frequency k, F(K y)_k = K̂_k (F y)_k.

    For K_dw, Eq. (5), it is diagonal and holds `symbol(stencil, grid)`; for K_circ, Eq. (12), it is a circulant matrix.

    Args:
        operator: y ↦ K y, linear, commuting with shifts of the periodic grid; [*grid, C_in] to [*grid, C_out].
        grid: points per axis.
        channels: C_in.

    Returns:
        K̂, complex, [*grid, C_out, C_in] in JAX's default precision; frequencies in the order of `jnp.fft.fftfreq`.

    Raises:
        ValueError: the operator changes the grid, is not linear, or does not commute with shifts. The last two are
            checked by one random y, and not while tracing.
    """
    grid = tuple(grid)
    impulses = np.zeros((channels, *grid, channels))
    impulses.reshape(channels, -1, channels)[:, 0] = np.eye(channels)
    probe = np.random.default_rng(0).normal(size=(1, *grid, channels))
    responses = jax.vmap(operator)(jnp.asarray(np.concatenate([impulses, probe])))
    if responses.shape[1:-1] != grid:
        got = f"responses on {list(responses.shape[1:-1])}"
        raise ValueError(f"operator must keep the grid {list(grid)}, got {got}; use operator_matrix")
    transfer = jnp.fft.fftn(jnp.moveaxis(responses[:-1], 0, -1), axes=range(len(grid)))
    if not isinstance(transfer, jax.core.Tracer):
        _check_transfer(*map(np.asarray, (transfer, probe[0], responses[-1])))
    return transfer


def spectrum(operator: Map, grid: Sequence[int], channels: int) -> jax.Array:
    """{μ : det(K̂_k - μ I) = 0}, the eigenvalues of K: those of `transfer_matrix` for each frequency.

    They determine whether the forward propagation is stable, Section 3.2.2. LAPACK computes them on the host, because
    accelerators have no general eigensolver; the function therefore does not run under `jax.jit`.

    Args:
        operator, grid, channels: as in `transfer_matrix`, with C_out = C_in.

    Returns:
        Eigenvalues, complex, [*grid, C]; those of one frequency in no particular order.

    Raises:
        ValueError: as in `transfer_matrix`; or the operator changes the number of channels.
    """
    transfer = transfer_matrix(operator, grid, channels)
    if transfer.shape[-2] != channels:
        expected = "operator must have as many channels out as in to have eigenvalues"
        raise ValueError(f"{expected}, got {channels} in and {transfer.shape[-2]} out; use singular_values")
    return jnp.asarray(np.linalg.eigvals(np.asarray(transfer)))


def singular_values(operator: Map, grid: Sequence[int], channels: int) -> jax.Array:
    """σ = √(eigenvalues of K̂_kᴴ K̂_k), the singular values of K: by how much K stretches each mode.

    K is any operator of Eqs. (4) to (7) and (12), an inverse or an adjoint of one.

    Args:
        operator, grid, channels: as in `transfer_matrix`.

    Returns:
        Singular values, real, [*grid, min(C_in, C_out)], those of one frequency in descending order.

    Raises:
        ValueError: as in `transfer_matrix`.
    """
    return jnp.linalg.svd(transfer_matrix(operator, grid, channels), compute_uv=False)


def spectral_radius(operator: Map, grid: Sequence[int], channels: int) -> jax.Array:
    """ρ(K) = max |eigenvalue|, Section 3.2.2: the growth per step when K is applied repeatedly.

    Args, Raises: as in `spectrum`.
    """
    return jnp.max(jnp.abs(spectrum(operator, grid, channels)))


def spectral_norm(operator: Map, grid: Sequence[int], channels: int) -> jax.Array:
    """‖K‖₂ = max singular value: the largest growth in one application; ρ(K) if K is normal, at least ρ(K) always.

    Args, Raises: as in `transfer_matrix`.
    """
    return jnp.max(singular_values(operator, grid, channels))


def max_stable_step(symbol: jax.Array) -> jax.Array:
    """2 / max|λ|²: the largest h with |1 - h|λ|²| ≤ 1 for every λ, the limit of the explicit step (9).

    Args:
        symbol: λ of K, its eigenvalues in any shape, e.g. from `symbol` or `circulant_symbol`. Not the matrices of
            `coupled_symbol`; for those the limit is 2 / ‖K‖₂² by `spectral_norm`.

    Returns:
        h, a scalar; infinite if λ = 0.

    Example:
        >>> laplacian = jnp.array([1.0, -2.0, 1.0])[:, None]
        >>> print(max_stable_step(symbol(laplacian, (4,))))  # max|λ|² = 16
        0.125
    """
    return 2 / jnp.max(squared_modulus(symbol))


def amplification(integrator: IntegratorName | Integrator, symbol: jax.Array, h: float | jax.Array) -> jax.Array:
    """R(h|λ|²): the factor by which a step without reaction multiplies each mode, Eqs. (9), (11); stable if |R| ≤ 1.

    Args:
        integrator: "forward_euler" (1 - z), "imex_euler" (1 / (1 + z)), "crank_nicolson" ((1 - z/2) / (1 + z/2)) or
            "exponential_euler" (e⁻ᶻ), z = h|λ|², or your own `Integrator`.
        symbol: λ of K, its eigenvalues in any shape, as in `max_stable_step`.
        h: time step, h ≥ 0.

    Returns:
        R, real, shaped as λ.

    Raises:
        ValueError: unknown integrator, h < 0 or not finite.
    """
    check_time_step(h)
    return as_integrator(integrator).factor(h * squared_modulus(symbol))


def green_function(stencil: jax.Array, grid: Sequence[int], h: float | jax.Array) -> jax.Array:
    """g = F⁻¹(1 / (1 + h|λ|²)): the response of the implicit step (11) to an impulse, (I + h KᵀK)⁻¹ y = g ∗ y.

    It shows how far the implicit step couples pixels. g is even (g₋ₓ = gₓ for every offset x), so
    `depthwise(g, y)` equals `depthwise_resolvent(stencil, y, h)`. For an implicit step of a trained network it is
    `layer.operations()[-1].response`, where `layer` comes from `lowcost.nn.bound_layers`; with a symmetric boundary on
    2n points per axis.

    Args:
        stencil: θ, real, [*window, C].
        grid: points per axis.
        h: time step, h ≥ 0.

    Returns:
        g, real, [*grid, C], with x = 0 at index n // 2 of each axis.

    Raises:
        TypeError: the stencil is not real floating point.
        ValueError: the stencil does not fit the grid, h < 0 or not finite.
    """
    check_time_step(h)
    axes = range(len(grid))
    response = jnp.fft.ifftn(1 / (1 + h * squared_modulus(symbol(stencil, grid))), axes=axes).real
    return jnp.fft.fftshift(response, axes)


def green_radius(stencil: jax.Array, grid: Sequence[int], h: float | jax.Array) -> jax.Array:
    """√(Σ_x |x|² g_x / Σ_x g_x) for the Green's function g of an unbounded grid: the reach of the implicit step (11).

    Estimated by √(Σ_i 2 (ĝ_0 / ĝ_{k_i} - 1) / k_i²) from the lowest frequency k_i = 2π / n_i of each axis of this grid,
    so that it does not depend on where g wraps around.

    Args:
        stencil: θ, real, [*window, C].
        grid: points per axis.
        h: time step, h ≥ 0.

    Returns:
        Radius in pixels, [C]; 0 if the diffusion damps the mean more than the lowest frequencies.

    Raises:
        TypeError, ValueError: as in `green_function`.

    Example:
        >>> difference = jnp.array([0.0, -1.0, 1.0])[:, None]
        >>> print(green_radius(difference, (64,), h=32.0).round(1))  # √(2h)
        [8.]
    """
    check_time_step(h)
    z = h * squared_modulus(symbol(stencil, grid))  # g is 1 / (1 + z)
    mean = z[(0,) * len(grid)][None]
    lowest = jnp.stack([z[tuple(e)] for e in np.eye(len(grid), dtype=int)])  # [axes, C]
    squares = 2 * (lowest - mean) / (1 + mean) * (np.array(grid)[:, None] / (2 * np.pi)) ** 2
    return root(jnp.maximum(jnp.sum(squares, axis=0), 0))


def green_tail(green: jax.Array) -> jax.Array:
    """t_r = Σ |g_x| over |x|_∞ > r: how much of a Green's function lies outside the box of (2r + 1)^d points.

    If g is cut off at that box, the implicit step (11) changes by at most t_r max|y| (in any p-norm, by t_r ‖y‖).

    Args:
        green: g, [*grid, C], centred as by `green_function`.

    Returns:
        t, [R + 1, C] for r = 0, ..., R = max(n) // 2; it never increases and ends in zero.
    """
    *grid, channels = green.shape
    distance = np.max(np.abs(np.indices(grid).T - np.array(grid) // 2), axis=-1).T
    mass = jnp.abs(green).reshape(-1, channels)
    shells = jax.ops.segment_sum(mass, distance.ravel(), num_segments=max(grid) // 2 + 1)
    beyond = jax.lax.cumsum(shells[1:], axis=0, reverse=True)  # from small to large: the far tail keeps its digits
    return jnp.concatenate([beyond, jnp.zeros_like(shells[:1])])


def support_radius(green: jax.Array, tolerance: float) -> jax.Array:
    """The smallest r with t_r ≤ tolerance: how many pixels a step of Eq. (11) reaches, per channel.

    Args:
        green: g, [*grid, C], centred as by `green_function`.
        tolerance: ℓ¹ mass allowed outside, ≥ 0; Σ g = 1 if the stencil has mean zero.

    Returns:
        r, integer, [C].

    Raises:
        ValueError: tolerance is not at least 0.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be an ℓ¹ mass ≥ 0, got {tolerance}; try 1e-3")
    return jnp.sum(green_tail(green) > tolerance, axis=0)


def operator_matrix(operator: Map, shape: Sequence[int], dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """A_ij = (K e_j)_i, the dense matrix of a linear map on a small grid.

    It reproduces the matrices printed in Eqs. (4) to (7) and (12).

    Args:
        operator: y ↦ K y, linear; it may change the shape and need not commute with shifts.
        shape: of y, e.g. [*grid, C].
        dtype: of y; JAX's default float if not given.

    Returns:
        [size of K y, size of y], features unravelled in row-major order.

    Raises:
        ValueError: y has more than `LARGEST_MATRIX` entries.

    Example:
        >>> from functools import partial
        >>> from lowcost import depthwise
        >>> laplacian = jnp.array([1.0, -2.0, 1.0])[:, None]
        >>> print(operator_matrix(partial(depthwise, laplacian), (4, 1)).round())
        [[-2.  1.  0.  1.]
         [ 1. -2.  1.  0.]
         [ 0.  1. -2.  1.]
         [ 1.  0.  1. -2.]]
    """
    size = math.prod(shape)
    if size > LARGEST_MATRIX:
        expected = f"shape must have at most {LARGEST_MATRIX} entries for a dense matrix"
        raise ValueError(f"{expected}, got {list(shape)} with {size}; use a smaller grid, or transfer_matrix")
    responses = jax.vmap(operator)(jnp.eye(size, dtype=dtype).reshape(size, *shape))
    return responses.reshape(size, -1).T


def _check_transfer(transfer, y, response):
    """Raises ValueError unless K y = F⁻¹(K̂ F y), which only linear and shift-invariant maps satisfy."""
    if not (np.isfinite(transfer).all() and np.isfinite(response).all()):
        raise ValueError("operator must return finite features, got NaN or infinity; check its weights")
    axes = range(y.ndim - 1)
    spectrum = np.einsum("...oi,...i->...o", transfer, np.fft.fftn(y, axes=axes))
    error = np.linalg.norm(np.fft.ifftn(spectrum, axes=axes) - response) / (np.linalg.norm(response) or 1)
    if not error < LARGEST_ERROR:
        got = f"impulse responses that differ from K y by {error:.1e} of its norm"
        remedy = "use boundary='periodic' and no activation, or operator_matrix"
        raise ValueError(f"operator must be linear and commute with shifts of the grid, got {got}; {remedy}")
