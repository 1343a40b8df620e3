"""Computes discrete Fourier and cosine transforms in real arithmetic, as matrix products with orthonormal bases.

A real convolution acts on the pair (cos kt, sin kt) as a + bJ, where J is the rotation by a right angle. The basis is
ordered so that cos kt and sin kt stand mirrored, which makes J a reversal of the axis. Matrix products run on every
accelerator in every precision, shard by themselves, and export to formats that have no FFT.
"""

import math
from functools import cache, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad
from jax.scipy.fft import dctn, idctn
from numpy.typing import NDArray

from lowcost.primitive import primitive

TPU_GRID_AT_ONCE, GPU_GRID_AT_ONCE = 256, 64
"""Points of a grid up to which an accelerator transforms all axes by one matrix product: it then reads them once."""


@cache
def real_basis(n: int) -> NDArray[np.float64]:
    """R, [n, n] orthonormal: rows cos kt and sin kt, each cosine mirrored to its sine.

    Even n: c₀ c₁ … c_{n/2-1} s_{n/2-1} … s₁ c_{n/2}; odd n: c₁ … c_m c₀ s_m … s₁.
    """
    k = frequencies(n)
    phase = np.outer(np.arange(n), np.arange(n)) % n  # exact integers
    waves = np.exp(2j * np.pi * phase / n)
    basis = np.where(k[:, None] <= n // 2, waves.real[k], waves.imag[-k])
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


@cache
def cosine_basis(n: int) -> NDArray[np.float64]:
    """The cosine transform DCT-II, [n, n] orthonormal: rows cos(πk(i + 1/2) / n), k = 0, …, n - 1.

    A row continues beyond both ends as its mirror image, which repeats the outermost point. A convolution with an even
    stencil and boundary="symmetric" therefore scales it, by the stencil's symbol λ(πk/n).
    """
    phase = np.outer(np.arange(n), 2 * np.arange(n) + 1) % (4 * n)  # exact integers
    basis = np.cos(np.pi * phase / (2 * n))
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def frequencies(n: int) -> NDArray[np.intp]:
    """Returns the frequency of each row of `real_basis` in FFT order: k for cos kt, n-k for sin kt."""
    alone, place = (0, n // 2) if n % 2 else (n // 2, n - 1)
    return np.insert(np.delete(np.arange(n), alone), place, alone)


def slots(spectrum: jax.Array, axis: int) -> jax.Array:
    """Reorders an axis from FFT order to that of `real_basis`, as indexing by `frequencies`, but by slices."""
    n = spectrum.shape[axis]
    piece, half = partial(jax.lax.slice_in_dim, spectrum, axis=axis), n // 2
    if n % 2:
        return jnp.concatenate([piece(1, half + 1), piece(0, 1), piece(half + 1, n)], axis)
    return jnp.concatenate([piece(0, half), piece(half + 1, n), piece(half, half + 1)], axis)


def both_signs(symbol: jax.Array) -> jax.Array:
    """Values at k, then at -k, along each axis but the last, in the order of `real_basis`.

    Args:
        symbol: [*grid, K], frequencies in FFT order.

    Returns:
        [2n₁, …, 2n_{d-1}, n_d, K].
    """
    for axis in range(symbol.ndim - 2):
        opposite = jnp.roll(jnp.flip(symbol, axis), 1, axis)
        symbol = jnp.concatenate([slots(symbol, axis), slots(opposite, axis)], axis)
    return slots(symbol, symbol.ndim - 2)


def real_parts(values: jax.Array, *, even: bool = False) -> dict[tuple[int, ...], jax.Array]:
    """{S: A_S} with A_S = 2⁻ᵈ Σ_s λ(s·k) Π_{i in S}(-i s_i) over sign patterns s: real, [*grid, K].

    A_S is the part of λ that is odd in the frequencies of the axes S and even in the others. As λ(-k) is the conjugate
    of λ(k), the patterns with s_d = 1 suffice. Of a real λ only the parts with an even number of axes remain.

    Args:
        values: λ(s·k) as in `both_signs`.
        even: whether only S = () is needed; λ is then real.
    """
    parts: dict[tuple[int, ...], jax.Array] = {(): values}
    last = values.ndim - 2
    for axis in range(last):
        split: dict[tuple[int, ...], jax.Array] = {}
        for subset, part in parts.items():
            plus, minus = jnp.split(part, 2, axis)
            split[subset] = (plus + minus) / 2
            split |= {} if even else {(*subset, axis): (plus - minus) / 2}
        parts = split
    if even:
        return parts
    parts = {s: part for subset, part in parts.items() for s in (subset, (*subset, last))}
    if jnp.iscomplexobj(values):
        return {s: jnp.real(part * (-1j) ** len(s)) for s, part in parts.items()}
    return {s: part * (-1) ** (len(s) // 2) for s, part in parts.items() if len(s) % 2 == 0}


def along(matrix: jax.Array | NDArray[Any], y: jax.Array, axis: int) -> jax.Array:
    """Σ_j matrix[i, j] y[..., j, ...] along `axis`, in full precision (accelerators would round to fewer bits)."""
    product = jnp.tensordot(matrix, y, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


def real_transform(y: jax.Array, basis: NDArray[np.float64], axis: int) -> jax.Array:
    """R y along `axis`, R = basis: one matrix product, or a batch of them, without transposes."""
    matrix = jnp.asarray(basis, y.dtype)
    batch, after = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # accelerators would round to fewer bits
    merged = (*y.shape[: axis + 1], after)  # one axis at a time, as JAX demands for a batch sharded along Explicit axes
    folded = y.reshape(merged).reshape(batch, y.shape[axis], after)
    if after == 1:
        return product(folded[..., 0], matrix.T)[..., None].reshape(merged).reshape(y.shape)
    return product(jnp.broadcast_to(matrix, (batch, *matrix.shape)), folded).reshape(merged).reshape(y.shape)


def _transform_grid(y, *, inverse, mirrored, method):
    """R y along the axes of one image y [*grid, C], or Rᵀ y.

    Along the first `mirrored` axes R is the cosine transform, computed by the method "fft" or "matmul".
    """

    def basis(axis: int) -> NDArray[np.float64]:
        matrix = (cosine_basis if axis < mirrored else real_basis)(y.shape[axis])
        return matrix.T if inverse else matrix

    if method == "fft":  # without the matrices of these axes, which may be long
        for axis in range(mirrored, y.ndim - 1):
            y = real_transform(y, basis(axis), axis)
        return (idctn if inverse else dctn)(y, axes=tuple(range(mirrored)), norm="ortho")
    bases = list(map(basis, range(y.ndim - 1)))
    points = math.prod(y.shape[:-1])
    tpu = _at_once if points <= TPU_GRID_AT_ONCE else _contracted
    gpu = _at_once if points <= GPU_GRID_AT_ONCE else _by_axis
    by_platform = {"cpu": _by_axis, "tpu": tpu, "default": gpu}
    branches = {platform: partial(transform, bases=bases) for platform, transform in by_platform.items()}
    return jax.lax.platform_dependent(y, **branches)


def _by_axis(y, bases):
    for axis, basis in enumerate(bases):
        y = real_transform(y, basis, axis)
    return y


def _contracted(y, bases):
    """Returns what `_by_axis` returns, by products for which a TPU's compiler chooses the layout."""
    for axis, basis in enumerate(bases):
        y = along(jnp.asarray(basis, y.dtype), y, axis)
    return y


def _at_once(y, bases):
    matrix = jnp.asarray(reduce(np.kron, bases), y.dtype)
    return jnp.matmul(matrix, y.reshape(len(matrix), -1), precision=jax.lax.Precision.HIGHEST).reshape(y.shape)


# R is orthogonal, so its adjoint is its inverse. JAX's own adjoint would contract the first axis of R, for which XLA
# has no fast product on a CPU.
_grid_transform = primitive("grid_transform", _transform_grid, ("inverse", "mirrored", "method"))
ad.deflinear2(_grid_transform, lambda ct, _, inverse, **how: [_grid_transform.bind(ct, inverse=not inverse, **how)])


def filter_image(multiply, how, *parts_and_image):
    """Rᵀ Σ_S multiply(A_S, flip_S(R y)) = F⁻¹(multiply(λ, F y)) of one image y [*grid, C], in real arithmetic.

    Args:
        multiply: bilinear in the symbol and the spectrum.
        how: the sets S of axes, the keys of `real_parts`, as a tuple; the number of leading axes along which F is the
            cosine transform; and the method by which that is computed.
        parts_and_image: A_S for each S, then y.
    """
    *parts, image = parts_and_image
    subsets, mirrored, method = how
    transform = partial(_grid_transform.bind, mirrored=mirrored, method=method)
    spectrum = transform(image, inverse=False)
    result = reduce(jnp.add, (multiply(part, jnp.flip(spectrum, s)) for s, part in zip(subsets, parts, strict=True)))
    return transform(result, inverse=True)
