"""Describes the diffusion of a step at inference as a filter, one of the operations of `lowcost.nn.operations`."""

from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowcost.arguments import ResolventBoundary
from lowcost.batching import per_shard
from lowcost.real_dft import both_signs, cosine_basis, real_basis, real_parts, real_transform, slots


@dataclass(frozen=True, eq=False)
class Filter:
    """F⁻¹(R(h|λ|²) ⊙ F y), R(z) = 1 / (1 + z) or 1 - z: Eq. (11), or Eq. (9), by the DFT as a matrix product.

    With boundary="symmetric" F is the cosine transform along the grid, and R is averaged over the signs of the grid's
    frequencies, as in `depthwise_resolvent`.

    Attributes:
        stencil: θ of K, [*window, C].
        h: time step.
        integrator: "imex_euler" for R(z) = 1 / (1 + z), "forward_euler" for R(z) = 1 - z.
        grid: points per axis.
        circulant: whether K = K_circ(θ), Eq. (12), whose F has the channels as one more axis.
        boundary: what lies outside the grid.
    """

    stencil: NDArray[np.float32]
    h: float
    integrator: Literal["imex_euler", "forward_euler"]
    grid: tuple[int, ...]
    circulant: bool = False
    boundary: ResolventBoundary = "periodic"

    @property
    def mirrored(self) -> int:
        """Number of axes, the grid's or none, along which F is the cosine transform."""
        return len(self.grid) if self.boundary == "symmetric" else 0

    @property
    def axes(self) -> tuple[int, ...]:
        """Points along each axis of F."""
        return (*self.grid, self.stencil.shape[-1]) if self.circulant else self.grid

    @property
    def period(self) -> tuple[int, ...]:
        """Points along each axis after which features repeat: 2n where an axis of n points is mirrored."""
        return tuple(2 * n if axis < self.mirrored else n for axis, n in enumerate(self.axes))

    @property
    def bases(self) -> list[NDArray[np.float64]]:
        """F along each axis: an orthonormal matrix."""
        return _bases(self.axes, self.mirrored)

    @cached_property
    def decay(self) -> NDArray[np.float64]:
        """z = h|λ|², [*period, C]."""
        # The position of the stencil's centre changes only the phase of λ.
        λ = np.fft.fftn(np.float64(self.stencil), s=self.period, axes=range(len(self.period)))
        return self.h * (λ.real**2 + λ.imag**2)

    @cached_property
    def factors(self) -> NDArray[np.float64]:
        """R(h|λ|²), [*period, C]; its part that is even in the frequency of each axis that is mirrored."""
        factors = 1 / (1 + self.decay) if self.integrator == "imex_euler" else 1 - self.decay
        for axis in range(self.mirrored):
            factors = (factors + np.roll(np.flip(factors, axis), 1, axis)) / 2
        return factors

    @property
    def symbol(self) -> NDArray[np.float64]:
        """The eigenvalues, [*grid, C]: R(h|λ|²) at the frequencies of F."""
        return self.factors[tuple(map(slice, self.grid))]

    @cached_property
    def response(self) -> NDArray[np.float64]:
        """The impulse response, [*period, C], centred at n // 2: for the implicit step, its Green's function."""
        axes = range(len(self.period))
        return np.fft.fftshift(np.fft.ifftn(self.factors, axes=axes).real, axes)

    @cached_property
    def parts(self) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """{S: A_S} of `real_parts`, each [*axes, channels that F does not transform]."""
        with jax.ensure_compile_time_eval():
            parts = _real_parts(self.symbol.reshape(*self.axes, -1), self.mirrored)
            return {subset: np.asarray(part, np.float32) for subset, part in parts.items()}

    def __call__(self, y: jax.Array) -> jax.Array:
        """[B, *grid, C] → the same shape."""
        options = {"subsets": tuple(self.parts), "axes": self.axes, "mirrored": self.mirrored}
        return per_shard(_filtered, len(self.grid), y, *self.parts.values(), **options)


@partial(jax.jit, static_argnums=1)  # outside of any jit each operation would be compiled
def _real_parts(symbol, mirrored):
    if mirrored:  # and even along the channels
        return {(): reduce(slots, range(mirrored, symbol.ndim - 1), symbol)}
    return real_parts(both_signs(symbol))


def _filtered(y, *parts, subsets, axes, mirrored):
    bases = _bases(axes, mirrored)
    spectrum = y[..., None] if len(axes) == y.ndim - 1 else y  # with the channels F has one more axis
    for axis, basis in enumerate(bases, 1):
        spectrum = real_transform(spectrum, basis, axis)
    terms = (jnp.flip(spectrum, [i + 1 for i in s]) * part[None] for s, part in zip(subsets, parts, strict=True))
    result = reduce(jnp.add, terms)
    for axis, basis in enumerate(bases, 1):
        result = real_transform(result, basis.T, axis)
    return result.reshape(y.shape)


def _bases(axes, mirrored):
    """F along each axis, the first ones mirrored: orthonormal matrices."""
    return [(cosine_basis if axis < mirrored else real_basis)(n) for axis, n in enumerate(axes)]
