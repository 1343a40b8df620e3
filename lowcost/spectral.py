"""Computes symbols, which make every low-cost operator of the paper exact and cheap (Eq. 10).

A periodic convolution is diagonal in the Fourier basis. Its diagonal, the symbol λ, determines everything about it: the
adjoint has the symbol λ̄, the normal operator |λ|², the resolvent 1 / (1 + h|λ|²), and the norm is max|λ|. Each operator
is therefore three steps: a stencil's `symbol`, a function of it, and `apply_symbol`.
"""

import math
from collections.abc import Sequence
from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import check_floating, check_stencil, promote
from lowcost.batching import each_image, per_shard
from lowcost.methods import SpectralMethod, choices, on_platform
from lowcost.real_dft import along, both_signs, filter_image, frequencies, real_parts
from lowcost.real_fft import inverse_real_fft, real_fft

LARGEST_CONSTANT = 2**20
"""Entries of a DFT matrix up to which it is written into a program; for larger ones the symbol is computed by FFT."""

LARGEST_PRODUCT = 2**16
"""Entries of the DFT matrix of all axes up to which a symbol is one matrix product, a single kernel."""


def symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_k = Σ_j θ_j exp(2πi k·j / n), the symbol (the eigenvalues) of each channel's C(θ), Eqs. (5), (10).

    The index j is 0 at the stencil's centre. The convolution of the paper is a correlation, (C y)_i = Σ_j θ_j y_{i+j},
    so λ = F(C e₁) is the conjugate of the stencil's transform, and C y = F⁻¹(λ ⊙ F y).

    Args:
        stencil: θ, real, [*window, C]; the centre of an axis of m points is index m // 2.
        grid: points per axis of the periodic grid; as many axes as the window, none shorter than the window's.

    Returns:
        λ, complex, [*grid, C]; frequencies in the order of `jnp.fft.fftfreq`.

    Raises:
        TypeError: the stencil is not real floating point.
        ValueError: the ranks differ, or the stencil is larger than the grid.

    Example:
        >>> laplacian = jnp.array([1.0, -2.0, 1.0])[:, None]  # one channel
        >>> print(symbol(laplacian, (4,)).real.round(3)[:, 0])
        [ 0. -2. -4. -2.]
    """
    check_stencil(stencil, grid)
    return _evaluated(as_complex(stencil), _frequencies(grid, "periodic"))


def circulant_symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_{k,q} = Σ_p exp(2πi q·p / c) λ_k(θ^{(p)}): the eigenvalues of K_circ(θ) in the basis F₃, Eq. (12).

    The channels are one more periodic axis: block (i, j) is the convolution with θ[..., (j - i) mod C].

    Args:
        stencil: θ, real, [*window, C]; θ[..., p] weights input channel (i + p) mod C in output channel i.
        grid: points per spatial axis.

    Returns:
        λ, complex, [*grid, C]; the last axis is the frequency along the channels.

    Raises:
        TypeError, ValueError: as in `symbol`.
    """
    check_stencil(stencil, grid)
    return symbol_for("fft", stencil, grid, circulant=True)


def coupled_symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_k = Σ_j θ_j exp(2πi k·j / n), one matrix per frequency: how K(θ) of Eq. (4) couples the channels of mode k.

    Args:
        stencil: θ, real, [*window, C_in, C_out].
        grid: points per axis.

    Returns:
        λ, complex, [*grid, C_in, C_out].

    Raises:
        TypeError, ValueError: as in `symbol`.
    """
    check_stencil(stencil, grid, channel_axes=2)
    return _evaluated(as_complex(stencil), _frequencies(grid, "periodic"))


def symbol_for(
    method: str, stencil: jax.Array, grid: Sequence[int], *, mirrored: bool = False, circulant: bool = False
) -> jax.Array:
    """λ at the frequencies at which `filter_spectrum` needs it, without checks.

    By FFT on the periodic grid it is the symbol. Otherwise the frequencies are those of the basis of F, and along every
    axis of F but the last k is followed by -k: [2n₁, …, 2n_{d-1}, n_d, C].

    Args:
        method: "fft" or "matmul".
        stencil: [*window, C], or coupled [*window, C_in, C_out].
        grid: points per axis.
        mirrored: whether F is the cosine transform along the grid, with the frequencies πk/n, k = 0, …, n - 1.
        circulant: whether F has the channels as its last axis.
    """
    kind = "mirrored" if mirrored else "periodic" if method == "fft" else "real"
    axes = _frequencies(grid, kind, circulant)
    if circulant:
        c = stencil.shape[-1]
        return _evaluated(_along_channels(stencil, np.arange(c) if kind == "periodic" else frequencies(c)), axes)
    window, points = stencil.shape[: len(axes)], [len(k) for _, k in axes]
    if math.prod(points) * math.prod(window) > LARGEST_PRODUCT:
        return _evaluated(as_complex(stencil), axes)
    channels = stencil.shape[len(axes) :]
    by_point = promote(stencil).reshape(*window, math.prod(channels))  # one step at a time, as in `real_transform`
    flat = by_point.reshape(math.prod(window), -1)
    parts = along(_all_characters(window, tuple(grid), kind, flat.dtype), flat, 0)
    return jax.lax.complex(*jnp.split(parts, 2)).reshape(*points, -1).reshape(*points, *channels)


def _frequencies(grid, kind, circulant=False):
    """The period of each axis of the grid, and its frequencies as in `symbol_for`.

    Args:
        kind: the basis of F: "periodic" (complex), "real" or "mirrored".
    """
    axes = []
    for axis, n in enumerate(grid):
        period = 2 * n if kind == "mirrored" else n
        k = frequencies(n) if kind == "real" else np.arange(n)
        both = kind != "periodic" and (circulant or axis + 1 < len(grid))
        axes.append((period, np.concatenate([k, -k % period]) if both else k))
    return axes


@cache  # programs contain one constant for all its uses
def _all_characters(window, grid, kind, dtype):
    """The products of `_characters` over all axes, [2·points, window]: real parts, then imaginary parts."""
    axes = zip(_frequencies(grid, kind), window, strict=True)
    matrix = reduce(np.kron, [_characters(period, m, m // 2)[k] for (period, k), m in axes])
    return np.concatenate([matrix.real, matrix.imag]).astype(dtype)


def as_complex(x: jax.Array) -> jax.Array:
    """Returns x as a complex array, of single precision at least."""
    x = promote(x)
    return x if jnp.iscomplexobj(x) else jax.lax.complex(x, jnp.zeros_like(x))


def _evaluated(λ, axes):
    """Σ_j λ_j exp(2πi k·j / period) for the (period, k) of each axis, one after another; j is 0 at the centre."""
    # An m-point stencil needs m columns of the DFT matrix: a few small products, exact, and no transform of zeros.
    for axis, (period, k) in enumerate(axes):
        m = λ.shape[axis]
        if len(k) * m <= LARGEST_CONSTANT:
            λ = along(_characters(period, m, m // 2)[k].astype(λ.dtype), λ, axis)
        else:
            phase = _characters(period, 1, m // 2).astype(λ.dtype)
            λ = period * jnp.fft.ifft(λ, period, axis) * phase.reshape([-1 if i == axis else 1 for i in range(λ.ndim)])
            λ = λ if np.array_equal(k, np.arange(period)) else jnp.take(λ, k, axis)
    return λ


def _along_channels(stencil, q):
    """Σ_p θ_p exp(2πi q·p / c): the Fourier transform of the last axis."""
    c = stencil.shape[-1]
    λ = as_complex(stencil)
    return along(_characters(c, c, 0)[q].astype(λ.dtype), λ, λ.ndim - 1)


def squared_modulus(symbol: jax.Array) -> jax.Array:
    """|λ|² = λ.re² + λ.im²: the symbol of KᵀK in Eqs. (8) to (11), real, shaped as λ.

    JAX's abs(λ)² has a wrong second derivative where λ = 0.
    """
    return symbol.real**2 + symbol.imag**2


def root(x: jax.Array) -> jax.Array:
    """√x for x ≥ 0, with the derivative 0 where x = 0, in place of NaN from ∞ · 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def apply_symbol(symbol: jax.Array, y: jax.Array, *, method: SpectralMethod = "auto") -> jax.Array:
    """F⁻¹(λ ⊙ F y), the operator with the symbol λ applied to y, Eq. (10); F is the Fourier transform along the grid.

    With the symbol λ of K this is K y; with 1 / (1 + h|λ|²) in place of λ it is the implicit diffusion (I + h KᵀK)⁻¹ y.

    Each device computes only its own images if the batch is sharded along a mesh axis of type Explicit, or along an
    axis of type Auto that is named "data" in the mesh of `jax.set_mesh`. Otherwise, and under `jax.vmap` over a sharded
    axis, XLA may gather the whole batch on every device. It does so on CPUs with any method, and on accelerators with
    "fft" before jax 0.12.

    Args:
        symbol: λ, [*grid, C], complex or real, with the symmetry λ(-k) = conj λ(k) that real stencils have.
            Without it the result is undefined, and differs between platforms.
        y: features, real, [..., *grid, C].
        method: "fft", "matmul" (the DFT as a real matrix product) or "auto" (the faster one according to
            measurements).

    Returns:
        Features with the shape and dtype of y, computed in at least float32.

    Raises:
        TypeError: y is not real floating point.
        ValueError: y does not end in the symbol's shape; unknown method.

    Example:
        >>> y = jnp.arange(4.0)[:, None]
        >>> bool(jnp.allclose(apply_symbol(jnp.full((4, 1), 2.0), y), 2 * y, atol=1e-5))  # λ = 2: twice the features
        True
    """
    check_floating("y", y)
    symbol = jnp.asarray(symbol)
    if symbol.ndim < 2 or y.shape[-symbol.ndim :] != symbol.shape:
        raise ValueError(
            f"y must end in the symbol's shape [*grid, C] = {list(symbol.shape)}, got shape {list(y.shape)}; "
            "compute the symbol for the grid of y"
        )
    *grid, channels = symbol.shape
    chosen = choices(method, "complex" if jnp.iscomplexobj(symbol) else "real", grid, grid, channels)
    return per_shard(on_platform, len(grid), y, symbol, function=_apply, choices=chosen)


def _apply(y, symbol, method):
    return scale_spectrum(y, symbol if method == "fft" else both_signs(symbol), method)


def scale_spectrum(y: jax.Array, λ: jax.Array, method: str, *, mirrored: int = 0) -> jax.Array:
    """F⁻¹(λ ⊙ F y) for the images of one device, without checks; the arguments are those of `filter_spectrum`."""
    return filter_spectrum(λ, y, _scale, method, mirrored=mirrored)


def _scale(λ, spectrum):
    aligned = jnp.expand_dims(λ, range(spectrum.ndim - λ.ndim))  # explicit, as the cast: users may forbid promotion
    return aligned.astype(jnp.result_type(spectrum)) * spectrum


def filter_spectrum(λ, y, multiply, method, *, all_at_once=False, mirrored=0):
    """F⁻¹(multiply(λ, F y)): `apply_symbol` for any product that acts on each frequency, e.g. of matrices.

    By FFT `multiply` is called once with half the spectrum, by matrix product once for each real part of λ.

    Args:
        λ: of `symbol_for` with this method, or a function of it, [*grid, K] with both signs of some axes.
        y: features [..., *grid, C]; K and C may differ as long as `multiply` accepts them.
        multiply: bilinear in (λ, ŷ), with the grid axes of λ and ŷ aligned. It must be the same object at every call,
            because compiled programs are cached by it.
        method: "fft" or "matmul".
        all_at_once: process all images at once on a CPU too, for a λ much larger than an image.
        mirrored: number of leading axes along which F is the cosine transform DCT-II; λ is then real, and only its
            part that is even in the frequency of each axis counts.
    """
    promoted = promote(y)
    if method == "fft" and not mirrored:
        grid = λ.shape[:-1]
        half = λ[..., : grid[-1] // 2 + 1, :]  # the other half of a real signal's spectrum is its mirror image
        filtered = _filter_images(_filter_image_by_fft, multiply, grid, all_at_once, promoted, half)
    else:
        parts = real_parts(λ, even=mirrored > 0)
        weights = [part.astype(promoted.dtype) for part in parts.values()]
        how = (tuple(parts), mirrored, method)
        filtered = _filter_images(filter_image, multiply, how, all_at_once, promoted, *weights)
    return filtered.astype(jnp.result_type(y))


def _filter_image_by_fft(multiply, grid, half, image):
    spectrum = jnp.moveaxis(real_fft(jnp.moveaxis(image, -1, 0), len(grid)), 0, -1)
    return jnp.moveaxis(inverse_real_fft(jnp.moveaxis(multiply(half, spectrum), -1, 0), grid), 0, -1)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # outside of any jit a loop would be compiled at every call
def _filter_images(function, multiply, option, all_at_once, y, *weights):
    """function(multiply, option, *weights, image) of every image of y [..., *grid, C]."""
    return each_image(partial(function, multiply, option, *weights), weights[0].ndim, y, all_at_once=all_at_once)


@cache
def _characters(n, m, centre):
    """[n, m]: exp(2πi k (j - centre) / n), the columns of the conjugated DFT matrix that an m-point stencil meets."""
    phase = np.outer(np.arange(n), np.arange(m) - centre) % n  # exact integers, so that float32 rounds once
    return np.exp(2j * np.pi * phase / n)
