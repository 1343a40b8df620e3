# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Symbols: what "diagonal in Fourier space" buys
#
# A convolution on a periodic grid multiplies each wave by a number. These numbers, one per frequency, are the
# *symbol* λ of the stencil. They are all the eigenvalues of the operator, and its adjoint, its inverse and its norm
# follow from them. This notebook computes symbols of stencils and looks at the operators of the paper.

# %%
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lowcost
from lowcost import analysis, plots

# %% [markdown]
# ## From a stencil to its symbol
#
# We take three stencils, one per channel: the Laplacian, an edge filter and a blur. `lowcost.symbol` computes the
# exact λ on any grid, Eq. (10). The centre of each plot is frequency zero, the factor of a constant. The rim holds
# the finest patterns of the grid. The Laplacian and the edge filter remove constants, and the blur removes the finest
# pattern.

# %%
laplacian = jnp.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
edge = jnp.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
blur = jnp.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
stencil = jnp.stack([laplacian, edge, blur], axis=-1)  # θ [3, 3, C]
symbol = lowcost.symbol(stencil, (64, 64))  # λ [64, 64, C]

figure, axes = plt.subplots(2, 3, figsize=(9, 5.4), layout="constrained")
for i, name in enumerate(("Laplacian", "edge", "blur")):
    plots.stencils(stencil[..., i : i + 1], ax=axes[0, i]).set_title(name)
    plots.symbol(symbol[..., i : i + 1], ax=axes[1, i])
plt.show()

# %% [markdown]
# ## The printed matrices
#
# The paper prints the operators of Eqs. (4), (5), (6), (7) and (12) as block matrices, with one block per pair of
# channels. Here they are for 4 channels of 4x4 pixels. Each block C(θ) is block circulant with circulant blocks. K_dw
# has one block per channel. The blocks of M are multiples of the identity. In K_circ every row has the same blocks,
# shifted.

# %%
grid, channels = (4, 4), 4
keys = jax.random.split(jax.random.key(0), 3)
θ = jax.random.normal(keys[0], (3, 3, channels)) / 3
M = jax.random.normal(keys[1], (channels, channels)) / 2
operators = {
    "K, Eq. (4)": partial(lowcost.fully_coupled, jax.random.normal(keys[2], (3, 3, channels, channels)) / 6),
    "K_dw, Eq. (5)": partial(lowcost.depthwise, θ),
    "M, Eq. (6)": partial(lowcost.pointwise, M),
    "K_lm = K_dw + M, Eq. (7)": partial(lowcost.linear_mix, θ, M),
    "K_circ, Eq. (12)": partial(lowcost.circulant, θ / 2),
}
figure, axes = plt.subplots(1, 5, figsize=(12, 2.9), layout="constrained")
for ax, (name, operator) in zip(axes, operators.items(), strict=True):
    dense = analysis.operator_matrix(operator, (*grid, channels))
    by_channel = jnp.arange(dense.shape[0]).reshape(-1, channels).T.ravel()  # the paper orders by channel, then pixel
    plots.matrix(dense[by_channel][:, by_channel], block=16, ax=ax).set_title(name, fontsize=10)
plt.show()

# %% [markdown]
# ## Their spectra
#
# `analysis.spectrum` computes the eigenvalues of any operator that commutes with shifts, here on 16x16 pixels. Those
# of K_dw and K_circ are the values of their symbols. M has four eigenvalues, the same at all frequencies.

# %%
figure, axes = plt.subplots(1, 5, figsize=(12, 2.9), layout="constrained", sharex=True, sharey=True)
for ax, (name, operator) in zip(axes, operators.items(), strict=True):
    plots.spectrum(analysis.spectrum(operator, (16, 16), channels), ax=ax).set_title(name, fontsize=10)
    ax.label_outer()
plt.show()

# %% [markdown]
# ## What it buys
#
# The adjoint, the normal operator, the inverse of Eq. (11) and the norm are functions of λ. Without λ one would build
# the dense matrix, factorise it and compute its singular values. Both give the same result.

# %%
grid, h = (16, 16), 1.0
λ = lowcost.symbol(θ, grid)
y = jax.random.normal(jax.random.key(1), (*grid, channels))
K = analysis.operator_matrix(partial(lowcost.depthwise, θ), (*grid, channels))


def difference(ours, dense):
    """Returns the largest difference, relative to the largest entry."""
    return f"{float(jnp.abs(ours - dense.reshape(ours.shape)).max() / jnp.abs(dense).max()):.1e}"


normal = K.T @ K
print("adjoint   λ̄               ", difference(lowcost.apply_symbol(λ.conj(), y), K.T @ y.ravel()))
print("KᵀK       |λ|²            ", difference(lowcost.apply_symbol(lowcost.squared_modulus(λ), y), normal @ y.ravel()))
solved = jnp.linalg.solve(jnp.eye(len(K)) + h * normal, y.ravel())
print("implicit  1 / (1 + h|λ|²) ", difference(lowcost.depthwise_resolvent(θ, y, h), solved))
print(f"norm      max|λ|           {float(jnp.abs(λ).max()):.5f} = {float(jnp.linalg.norm(K, 2)):.5f}")

# %% [markdown]
# Finally we time the implicit step as a dense solve and as a filter. The dense matrix grows with the square of the
# number of features, and its factorisation with the cube. For n pixels the filter takes n log n operations, or
# n^(3/2) where a matrix product is the faster transform.


# %%
def milliseconds(f, *arguments):
    """Returns the shortest time of five calls, without compilation."""
    f = jax.jit(f)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


dense = milliseconds(lambda A, y: jnp.linalg.solve(A, y.ravel()), jnp.eye(len(K)) + h * normal, y)
spectral = milliseconds(partial(lowcost.depthwise_resolvent, h=h), θ, y)
print(
    f"{K.shape[0]} x {K.shape[1]} matrix: {dense:.0f} ms    filter: {spectral:.2f} ms    {dense / spectral:,.0f} times"
)
