"""Draws cover.png, the picture of the README: a stencil, its symbol, its Green's functions, and a pattern.

python docs/cover.py
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import lowcost

TITLES = (
    ("a stencil θ", "9 weights"),
    ("lowcost.symbol(θ, grid)", "|λ|², the eigenvalues of KᵀK, exactly"),
    ("green_function(θ, grid, h=1)", "(I + hKᵀK)⁻¹ as a convolution"),
    ("green_function(θ, grid, h=100)", "farther, and never amplifies"),
    ("imex_euler(…, reaction, y, h)", "Gray–Scott, 3 times the explicit limit"),
)


def draw(path: Path, steps: int = 3200) -> None:
    """Draws the picture; `steps` is the number of time steps of the reaction-diffusion equation."""
    θ = jnp.array([[0.0, 0.8, 0.8], [0.8, -4.8, 0.8], [0.8, 0.8, 0.0]])[..., None] / 4  # an anisotropic Laplacian
    grid = (64, 64)
    greens = [np.abs(lowcost.analysis.green_function(θ, grid, h)[..., 0]) for h in (1.0, 100.0)]
    symbol = np.fft.fftshift(lowcost.squared_modulus(lowcost.symbol(θ, grid))[..., 0])
    log: list[dict] = [{"norm": LogNorm(1e-5 * g.max(), g.max(), clip=True), "cmap": "viridis"} for g in greens]
    panels: tuple[tuple[Any, dict], ...] = (
        (θ[..., 0], {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}),
        (symbol, {"cmap": "viridis"}),
        (greens[0], log[0]),
        (greens[1], log[1]),
        (pattern(steps)[..., 1], {"cmap": "magma", "vmin": 0, "vmax": 0.4}),
    )
    figure = Figure(figsize=(15, 3.7), layout="constrained")
    for ax, (picture, style), (title, below) in zip(figure.subplots(1, 5), panels, TITLES, strict=True):
        ax.imshow(picture, interpolation="nearest", **style)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10.5, family="monospace" if "(" in title else None)
        ax.set_xlabel(below, fontsize=11)
    figure.savefig(path, dpi=80)


def pattern(steps: int, size: int = 160):
    """Returns u and v of Gray and Scott's equations after a number of steps of Eq. (11), [size, size, 2]."""
    root = jnp.sqrt(jnp.array([0.64, 0.32]))
    difference = jnp.stack([-root, root])  # θ [2, C]: KᵀK is -D ∂²/∂x²
    F, k = 0.0545, 0.062

    def resolvent(y, h):
        return lowcost.depthwise_resolvent(difference[:, None], lowcost.depthwise_resolvent(difference[None], y, h), h)

    def reaction(y):
        u, v = y[..., 0], y[..., 1]
        return jnp.stack([-u * v**2 + F * (1 - u), u * v**2 - (F + k) * v], axis=-1)

    places = jax.random.uniform(jax.random.key(0), (size // 8, size // 8)) < 0.2
    seeds = jnp.kron(places, jnp.ones((8, 8)))
    start = jnp.stack([1 - 0.5 * seeds, 0.25 * seeds], axis=-1)
    step = partial(lowcost.imex_euler, resolvent, reaction)
    return jax.jit(lambda y: jax.lax.fori_loop(0, steps, lambda _, y: step(y, 1.25), y))(start)


if __name__ == "__main__":
    draw(Path(__file__).with_name("cover.png"))
