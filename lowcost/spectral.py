"""Symbols: what makes every low-cost operator of the paper exact and cheap (Eq. 10).

A periodic convolution is diagonal in the Fourier basis. Its diagonal, the symbol λ, tells everything about it: the
adjoint is λ̄, the normal operator |λ|², a resolvent 1 / (1 + h|λ|²), the norm max|λ|. So the operators are a stencil's
`symbol`, a function of it, and `apply_symbol`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from lowcost.arguments import check_floating, check_stencil
from lowcost.batching import each_image, per_shard
from lowcost.methods import choose
from lowcost.primitive import primitive


def symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_k = Σ_j θ_j exp(2πi k·j / n), j counted from the stencil's centre: the eigenvalues of C(θ), Eqs. (5), (10).

    The convolution of the paper is a correlation, (C y)_i = Σ_j θ_j y_{i+j}, so λ = F(C e₁) is the conjugate of
    the stencil's transform, and C y = F⁻¹(λ ⊙ F y).

    Args:
        stencil: θ, real, [*window, C]; the centre of an axis of m points is index m // 2.
        grid: points per axis of the periodic grid, as many axes as the window, none shorter than the window's.

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
    grid = tuple(grid)
    check_stencil(stencil, grid)
    return _symbol(stencil, grid)


def _symbol(stencil, grid):
    # An m-point stencil needs m columns of the DFT matrix: a few small products, exact, and no transform of zeros.
    λ = promote(stencil) + 0j
    for axis, (n, m) in enumerate(zip(grid, stencil.shape, strict=False)):
        if n * m <= 2**20:
            λ = _along(_characters(n, m, m // 2).astype(λ.dtype), λ, axis)
        else:  # where the matrix would be a constant of many megabytes
            phase = _characters(n, 1, m // 2).astype(λ.dtype)
            λ = n * jnp.fft.ifft(λ, n, axis) * phase.reshape(-1, *(1,) * (λ.ndim - 1 - axis))
    return λ


def circulant_symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_{k,q} = Σ_p exp(2πi q·p / c) λ_k(θ^{(p)}): the eigenvalues of K_circ(θ) in the basis F₃, Eq. (12).

    The channels are one more periodic axis, along which block (i, j) holds C(θ^{(j-i mod c)}).

    Args:
        stencil: θ, real, [*window, C]; slice p couples channel i to channel i + p mod C.
        grid: points per spatial axis.

    Returns:
        λ, complex, [*grid, C], the last axis being the frequency along the channels.

    Raises:
        TypeError, ValueError: as `symbol`.
    """
    λ = symbol(stencil, grid)
    c = λ.shape[-1]
    return _along(_characters(c, c, 0).astype(λ.dtype), λ, λ.ndim - 1)


def coupled_symbol(stencil: jax.Array, grid: Sequence[int]) -> jax.Array:
    """λ_k = Σ_j θ_j exp(2πi k·j / n), a matrix a frequency: what K(θ) of Eq. (4) does to the channels of mode k.

    Args:
        stencil: θ, real, [*window, C_in, C_out].
        grid: points per axis.

    Returns:
        λ, complex, [*grid, C_in, C_out].

    Raises:
        TypeError, ValueError: as `symbol`.
    """
    grid = tuple(grid)
    check_stencil(stencil, grid, channel_axes=2)
    return _symbol(stencil, grid)


def squared_modulus(symbol: jax.Array) -> jax.Array:
    """|λ|² = λ.re² + λ.im²: the symbol of KᵀK in Eqs. (8) to (11), real, shaped as λ.

    Not abs(λ)², whose second derivative is wrong where λ = 0.
    """
    return symbol.real**2 + symbol.imag**2


def apply_symbol(symbol: jax.Array, y: jax.Array, *, method: str = "auto") -> jax.Array:
    """F⁻¹(λ ⊙ F y), with F the Fourier transform along the grid: Eq. (10) and every function of it.

    Args:
        symbol: λ, [*grid, C], complex or real, with the symmetry λ(-k) = conj λ(k) that real stencils have.
        y: features, real, [..., *grid, C].
        method: "fft", "matmul" (the DFT as a real matrix product) or "auto" (the faster here, by grid and platform).

    Nothing is gathered for a sharded batch: on mesh axes of type Explicit the sharding of y decides, on axes of type
    Auto the batch must lie along one that is named "data" (`jax.set_mesh`). Otherwise, and under `jax.vmap` over a
    sharded axis, XLA may gather: on a CPU, which takes one image after another, and before jax 0.12 for "fft".

    Returns:
        Features with the shape and dtype of y, computed in float32 at least.

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
            f"y must end in the symbol's shape [*grid, C] = {list(symbol.shape)}, got y of shape {list(y.shape)}"
        )
    return per_shard(scale_spectrum, symbol.ndim - 1, y, symbol, method=method)


def scale_spectrum(y: jax.Array, symbol: jax.Array, method: str) -> jax.Array:
    """F⁻¹(λ ⊙ F y): `apply_symbol` on the images of one device."""
    return filter_spectrum(symbol, y, _scale, method=method)


def filter_spectrum(
    symbol: jax.Array,
    y: jax.Array,
    multiply: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    method: str = "auto",
    together: bool = False,
) -> jax.Array:
    """F⁻¹(multiply(λ, F y)): `apply_symbol` for any product that acts frequency by frequency, e.g. of matrices.

    By FFT `multiply` is called once with half the spectrum, by matrix product once for each real part of λ.

    Args:
        symbol: λ, [*grid, K]; y: features [..., *grid, C]; K and C may differ as long as `multiply` accepts them.
        multiply: bilinear in (λ, ŷ), with the grid axes of λ and ŷ aligned; the same object at every call, since
            what is compiled is kept by it.
        method: as in `apply_symbol`.
        together: all images at once on a CPU too, for a λ much larger than an image.
    """
    check_floating("y", y)
    grid = symbol.shape[:-1]
    method = choose(method, "complex" if jnp.iscomplexobj(symbol) else "real", grid, grid, y.shape[-1])
    apply = _filter_fft if method == "fft" else _filter_matmul
    return apply(promote(y), symbol, multiply, together).astype(jnp.result_type(y))


def _scale(λ, spectrum):
    return jnp.expand_dims(λ, range(spectrum.ndim - λ.ndim)) * spectrum  # said, not left to NumPy's promotion of ranks


def promote(x: jax.Array) -> jax.Array:
    """x in float32 at least: the operators take and give bfloat16, but compute, and add up, in float32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- transforms -------------------------------------------------------------------------------------------------------


def _filter_fft(y, symbol, multiply, together):
    grid = symbol.shape[:-1]
    half = symbol[..., : grid[-1] // 2 + 1, :]  # the other half of a real signal's spectrum is its mirror image
    return _over_images(_filter_image_fft, multiply, grid, together, y, half)


def _filter_image_fft(multiply, grid, half, image):
    axes = tuple(range(len(grid)))
    return jnp.fft.irfftn(multiply(half, jnp.fft.rfftn(image, axes=axes)), s=grid, axes=axes)


def _filter_matmul(y, symbol, multiply, together):
    """Rᵀ Σ_S A_S ⊙ flip_S(R y), R the orthonormal cos/sin basis of each axis: the same filter in real arithmetic.

    On the pair (cos kt, sin kt) a convolution acts as a + bJ, J the rotation by a right angle. R is ordered so that
    cos kt and sin kt stand mirrored, which makes J a reversal of the axis. In d dimensions J acts on any subset S of
    the axes; A_S is the part of λ that is odd in the frequencies of S and even in the others, and for a real symbol
    only the even |S| remain.
    """
    subsets, parts = zip(*((subset, part.astype(y.dtype)) for subset, part in real_parts(symbol).items()), strict=True)
    return _over_images(_filter_image_matmul, multiply, subsets, together, y, *parts)


def _filter_image_matmul(multiply, subsets, *parts_and_image):
    *parts, spectrum = parts_and_image
    grid = range(spectrum.ndim - 1)
    for axis in grid:
        spectrum = _real_transform.bind(spectrum, axis=axis, inverse=False)
    result = reduce(jnp.add, (multiply(part, jnp.flip(spectrum, s)) for s, part in zip(subsets, parts, strict=True)))
    for axis in grid:
        result = _real_transform.bind(result, axis=axis, inverse=True)
    return result


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # outside of any jit a loop would be compiled at every call
def _over_images(function, multiply, how, together, y, *weights):
    """function(multiply, how, *weights, image) of every image of y [..., *grid, C]."""
    rank = weights[0].ndim
    batch = y.shape[:-rank]
    images = y.reshape(math.prod(batch), *y.shape[-rank:])
    result = each_image(partial(function, multiply, how, *weights), images, together=together)
    return result.reshape(*batch, *result.shape[1:])


def real_transform(y: jax.Array, *, axis: int, inverse: bool) -> jax.Array:
    """R y along `axis`, or Rᵀ y, R being `real_basis`: the matrix product, or the batch of them, that moves no data."""
    basis = real_basis(y.shape[axis])
    matrix = jnp.asarray(basis.T if inverse else basis, y.dtype)
    batch, after = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # accelerators would round to fewer bits
    if after == 1:
        return product(y.reshape(batch, y.shape[axis]), matrix.T).reshape(y.shape)
    merged = (*y.shape[: axis + 1], after)  # one axis at a time, as JAX demands for a batch sharded along Explicit axes
    folded = y.reshape(merged).reshape(batch, y.shape[axis], after)
    return product(jnp.broadcast_to(matrix, (batch, *matrix.shape)), folded).reshape(merged).reshape(y.shape)


# R is orthogonal: its adjoint is its inverse, and is computed as that. JAX's own would contract the first axis of R,
# for which XLA has no fast product on a CPU.
_real_transform = primitive("real_transform", real_transform, ("axis", "inverse"))
ad.deflinear2(_real_transform, lambda ct, _, axis, inverse: [_real_transform.bind(ct, axis=axis, inverse=not inverse)])


def real_parts(symbol: jax.Array) -> dict[tuple[int, ...], jax.Array]:
    """{S: A_S} with A_S = 2⁻ᵈ Σ_s λ(s·k) Π_{i in S}(-i s_i) over sign patterns s: real, in the order of the basis."""
    is_real = not jnp.iscomplexobj(symbol)
    parts: dict[tuple[int, ...], jax.Array] = {(): symbol}
    for axis, n in enumerate(symbol.shape[:-1]):
        split = {}
        for subset, part in parts.items():
            mirrored = jnp.roll(jnp.flip(part, axis), 1, axis)  # λ(-k)
            split[subset] = slots(part + mirrored, axis, n) / 2
            split[(*subset, axis)] = slots(part - mirrored, axis, n) / 2
        parts = split
    if is_real:
        return {s: part * (-1) ** (len(s) // 2) for s, part in parts.items() if len(s) % 2 == 0}
    return {s: jnp.real(part * (-1j) ** len(s)) for s, part in parts.items()}


def slots(spectrum: jax.Array, axis: int, n: int) -> jax.Array:
    """From FFT order to that of `real_basis`: frequency k at cos kt, frequency n-k at sin kt."""
    piece, half = partial(jax.lax.slice_in_dim, spectrum, axis=axis), n // 2
    if n % 2:
        return jnp.concatenate([piece(1, half + 1), piece(0, 1), piece(half + 1, n)], axis)
    return jnp.concatenate([piece(0, half), piece(half + 1, n), piece(half, half + 1)], axis)


@cache
def real_basis(n: int) -> np.ndarray:
    """R, [n, n] orthonormal: rows cos kt and sin kt, each cosine mirrored to its sine.

    Even n: c₀ c₁ … c_{n/2-1} s_{n/2-1} … s₁ c_{n/2}; odd n: c₁ … c_m c₀ s_m … s₁.
    """
    half = n // 2
    if n % 2:
        cosines, sines, last = [*range(1, half + 1), 0], [*range(half, 0, -1)], []
    else:
        cosines, sines, last = [*range(half)], [*range(half - 1, 0, -1)], [half]
    waves = np.exp(2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    basis = np.stack([*waves.real[cosines], *waves.imag[sines], *waves.real[last]])
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


@cache
def _characters(n, m, centre):
    """[n, m]: exp(2πi k (j - centre) / n), the DFT matrix's columns that an m-point stencil meets, conjugated."""
    phase = np.outer(np.arange(n), np.arange(m) - centre) % n  # exact integers, so that float32 rounds once
    return np.exp(2j * np.pi * phase / n)


def _along(matrix, y, axis):
    """Σ_j matrix[i, j] y[..., j, ...] along `axis`, in full precision (accelerators would round to fewer bits)."""
    product = jnp.tensordot(matrix, y, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)
