"""Plots the operators of Section 3: each function draws into one matplotlib axes and returns it.

Needs matplotlib, the extra `plots`. The colours suit colour-blind readers. Values of one sign run from dark to bright
(viridis), signed values from blue through white (zero, or one for a factor) to red.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowcost.arguments import check_floating
from lowcost.extras import needs_extra
from lowcost.spectral import squared_modulus
from lowcost.time_stepping import Integrator, IntegratorName, as_integrator

with needs_extra("plots"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm, TwoSlopeNorm

MOST_TILES = 64
"""Largest number of channels drawn of one layer."""


def stencils(stencil: jax.Array, *, ax: Axes | None = None) -> Axes:
    """θ_{j,c} for each channel c: blue is negative, white zero, red positive, Eq. (5).

    Args:
        stencil: θ, [m, C] or [m, m, C]; the first 64 channels are drawn.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes.

    Raises:
        TypeError: the stencil is not real.
        ValueError: the stencil has other than one or two window axes.
    """
    θ = _two_dimensional("stencil", stencil)
    ax = _axes(ax)
    _mosaic(ax, θ, **_signed(θ))
    ax.set_title(f"stencils θ, {'x'.join(map(str, stencil.shape[:-1]))} points")
    return ax


def symbol(symbol: jax.Array, *, ax: Axes | None = None) -> Axes:
    """|λ_k|² over the frequencies k, zero in the middle: the factors of KᵀK, Eq. (10).

    Args:
        symbol: λ, [n, C] drawn as curves, or [n₁, n₂, C] drawn as images; from `lowcost.symbol`,
            `lowcost.circulant_symbol`, or the `symbol(grid)` of a step without matrices. The first 64 channels are
            drawn.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes, with frequencies in cycles per pixel, from -1/2 to 1/2. The images of several channels are placed side
        by side, without ticks.

    Raises:
        ValueError: the symbol has other than one or two grid axes.
    """
    values = np.asarray(squared_modulus(symbol), float)
    spectra = np.fft.fftshift(_two_dimensional("symbol", values), (0, 1))
    ax = _axes(ax)
    if values.ndim == 2:
        frequencies = np.fft.fftshift(np.fft.fftfreq(len(values)))
        ax.plot(frequencies, spectra[0, :, :MOST_TILES], color="C0", alpha=max(0.2, values.shape[-1] ** -0.5))
        ax.set(xlabel="frequency, cycles per pixel", ylabel="|λ|²", xlim=(-0.5, 0.5), ylim=(0, None))
        return ax
    single = spectra.shape[-1] == 1
    (top, bottom), (left, right) = ((-(n // 2 + 0.5) / n, ((n + 1) // 2 - 0.5) / n) for n in spectra.shape[:2])
    _mosaic(ax, spectra, cmap="viridis", vmin=0, extent=(left, right, bottom, top) if single else None)
    ax.set_title("|λ|² at each frequency")
    if single:
        ticks = (-0.5, -0.25, 0, 0.25, 0.5)
        ax.set(xlabel="cycles per pixel", xticks=ticks, yticks=ticks, xlim=(left, right), ylim=(bottom, top))
    return ax


def spectrum(eigenvalues: jax.Array, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Eigenvalues μ in the complex plane and the circle |μ| = 1, outside of which a mode grows, Section 3.2.2.

    Args:
        eigenvalues: complex, of any shape, e.g. a symbol λ, or from `lowcost.analysis.spectrum`.
        ax: where to draw; a new figure if not given. Pass the same axes again to compare several spectra.
        style: of the points, as for `matplotlib.axes.Axes.plot`, e.g. `label="K"`.

    Returns:
        The axes, with the same scale in both directions.
    """
    ax = _axes(ax)
    values = np.asarray(eigenvalues).ravel()
    if not any(patch.get_gid() == "unit circle" for patch in ax.patches):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", linewidth=1, zorder=3, gid="unit circle"))
        ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    points: dict[str, Any] = {"linestyle": "", "marker": ".", "markersize": 4, "alpha": 0.7}
    ax.plot(values.real, values.imag, **points | style)
    ax.set(xlabel="real part", ylabel="imaginary part", title="eigenvalues and the unit circle")
    ax.set_aspect("equal")
    return ax


def green_function(green: jax.Array, *, channel: int = 0, ax: Axes | None = None) -> Axes:
    """|g_x| on a logarithmic scale: how far and how strongly the implicit step (11) couples pixels.

    Args:
        green: g, [n, C] drawn as a curve or [n₁, n₂, C] drawn as an image, from `lowcost.analysis.green_function`.
        channel: the channel to draw.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes, with distances in pixels. Values below 10⁻⁶ of the largest are drawn as 10⁻⁶.

    Raises:
        TypeError: g is not real.
        ValueError: g has other than one or two grid axes.
    """
    g = np.abs(_two_dimensional("green", green)[..., channel])
    floor = g.max() * 1e-6 or 1e-6  # six decades, also where g = 0
    ax = _axes(ax)
    if np.ndim(green) == 2:
        ax.semilogy(np.arange(g.size) - g.size // 2, np.maximum(g[0], floor))
        ax.set(xlabel="distance, pixels", ylabel="|g|")
        return ax
    low, left = (-(n // 2) - 0.5 for n in g.shape)
    extent = (left, left + g.shape[1], low + g.shape[0], low)
    picture = ax.imshow(np.maximum(g, floor), norm=LogNorm(floor, 1e6 * floor), extent=extent, cmap="viridis")
    ax.figure.colorbar(picture, ax=ax, fraction=0.046, pad=0.04)
    ax.set(title="Green's function |g|", xlabel="pixels")
    return ax


def stability_map(integrator: IntegratorName | Integrator, symbol: jax.Array, *, ax: Axes | None = None) -> Axes:
    """|R(h|λ|²)| over the time step h and the modes: each step damps blue modes and amplifies red ones.

    The black line |R| = 1 is the limit of stability. Without such a line the integrator is stable for every h.

    Args:
        integrator: "forward_euler" (9), "imex_euler" (11), "crank_nicolson", "exponential_euler", or an `Integrator`.
        symbol: λ, eigenvalues in any shape.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes: h from 1/100 to 100 times the limit 2 / max|λ|² of the explicit step, and |λ|² from 0 to its maximum.

    Raises:
        ValueError: unknown integrator, or λ = 0.
    """
    factor = as_integrator(integrator).factor
    title = integrator.replace("_", " ") if isinstance(integrator, str) else "integrator"
    largest = float(squared_modulus(symbol).max())
    if not largest:
        raise ValueError("symbol must have a λ other than 0, got zeros only; check the stencil")
    ax = _axes(ax)
    steps = np.geomspace(0.01, 100, 201) * 2 / largest
    modes = np.linspace(0, largest, 101)
    factors = np.abs(factor(jnp.asarray(np.outer(modes, steps))))
    norm = TwoSlopeNorm(1, 0, 2)
    picture = ax.pcolormesh(steps, modes, factors, norm=norm, cmap="RdBu_r", shading="gouraud", rasterized=True)
    if (factors > 1 + 1e-6).any():
        ax.contour(steps, modes, factors, levels=[1], colors="black", linewidths=1)
    ax.set(xscale="log", xlabel="time step h", ylabel="|λ|²", title=title)
    ax.figure.colorbar(picture, ax=ax, extend="max", ticks=(0, 0.5, 1, 1.5, 2), label="factor |R| of one step")
    return ax


def matrix(matrix: jax.Array, *, block: int | None = None, ax: Axes | None = None) -> Axes:
    """(i, j) ↦ A_ij drawn entry by entry: the printed matrices of Eqs. (4), (5), (6), (7) and (12).

    Args:
        matrix: real, [rows, columns], e.g. from `lowcost.analysis.operator_matrix`.
        block: rows and columns of a block, e.g. the number of pixels; lines are drawn between blocks.
        ax: where to draw; a new figure if not given.

    Returns:
        The axes: blue is negative, white zero, red positive.

    Raises:
        TypeError: the matrix is not real.
    """
    check_floating("matrix", matrix)
    entries = np.asarray(matrix, float)
    ax = _axes(ax)
    ax.imshow(entries, interpolation="nearest", **_signed(entries))
    ax.set(xticks=[], yticks=[])
    for size, line in zip(entries.shape, (ax.axhline, ax.axvline), strict=True):
        for start in range(block, size, block) if block else ():
            line(start - 0.5, color="0.6", linewidth=0.7)
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(4.5, 4), layout="constrained")[1] if ax is None else ax


def _signed(values: np.ndarray) -> dict[str, Any]:
    """Returns the colours of signed values: blue, white at zero, red."""
    largest = np.abs(values).max() or 1.0
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _two_dimensional(name: str, array: jax.typing.ArrayLike) -> np.ndarray:
    """Returns the array as [H, W, C], a signal [n, C] as one row."""
    check_floating(name, array)
    values = np.asarray(array, float)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        got = f"shape {list(values.shape)}"
        raise ValueError(f"{name} must be [n, C] or [n, n, C], got {got}; of a volume draw a slice")
    return values


def _mosaic(ax: Axes, values: np.ndarray, **style: Any) -> None:
    """Draws the channels of [H, W, C] side by side, in about a square, with a colour bar."""
    values = values[..., :MOST_TILES]
    height, width, count = values.shape
    gap = 0 if count == 1 else max(1, round(0.08 * max(height, width)))
    columns = min(count, math.ceil(math.sqrt(count * height / width)))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i in range(count):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = values[..., i]
    picture = ax.imshow(canvas, interpolation="nearest", **style)
    ax.set(xticks=[], yticks=[])
    ax.set_facecolor("0.88")  # between the channels
    for spine in ax.spines.values():
        spine.set_visible(count == 1)
    ax.figure.colorbar(picture, ax=ax, fraction=0.046, pad=0.04)
