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
# # Stability and Green's functions
#
# The diffusion ∂ₜy = -KᵀK y damps features for every stencil. Its discrete steps need not. Explicit steps, Eq. (9),
# do so only while h·max|λ|² ≤ 2. Implicit steps, Eq. (11), always do.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lowcost
from lowcost import analysis, plots

stencil = jnp.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[..., None] / 4  # θ, one channel
grid = (64, 64)
symbol = lowcost.symbol(stencil, grid)
limit = float(analysis.max_stable_step(symbol))
print(f"max|λ|² = {float(lowcost.squared_modulus(symbol).max()):g}, the explicit step is stable up to h = {limit:g}")

# %% [markdown]
# ## The factor of one step
#
# A step multiplies each mode by R(h|λ|²). Blue modes are damped and red ones amplified. The explicit step has a
# limit, the black line. The other steps have none. Crank–Nicolson is more accurate than the implicit step for small
# h. For large h it hardly damps the fastest modes: their factor is close to -1, and its plot is white at the right
# edge.

# %%
figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
for ax, integrator in zip(axes.flat, lowcost.time_stepping.INTEGRATORS, strict=True):
    plots.stability_map(integrator, symbol, ax=ax)
plt.show()

# %% [markdown]
# ## Fifty steps
#
# We take fifty steps from the same noise. With h ten per cent above the limit, the explicit step multiplies its
# finest pattern by 1.2⁵⁰, about nine thousand (note the colour scales). With h forty times the limit, the implicit
# step only smooths more.

# %%
noise = jax.random.normal(jax.random.key(0), (*grid, 1))
explicit = jax.jit(lambda y, h: lowcost.forward_euler(partial(lowcost.depthwise_diffusion, stencil), y, h))
implicit = jax.jit(lambda y, h: lowcost.imex_euler(partial(lowcost.depthwise_resolvent, stencil), jnp.zeros_like, y, h))

figure, axes = plt.subplots(2, 2, figsize=(9, 7.2), layout="constrained")
for ax, (name, step, h) in zip(
    axes.flat,
    [
        ("explicit", explicit, 0.9 * limit),
        ("explicit", explicit, 1.1 * limit),
        ("implicit", implicit, 1.1 * limit),
        ("implicit", implicit, 40 * limit),
    ],
    strict=True,
):
    y = noise
    for _ in range(50):
        y = step(y, h)
    largest = float(jnp.abs(y).max())
    image = ax.imshow(y[..., 0], cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    ax.set(title=f"{name}, h = {h / limit:g} of the limit", xticks=[], yticks=[])
    figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
plt.show()

# %% [markdown]
# ## The eigenvalues that are exactly 1
#
# The paper states ρ((I + hKᵀK)⁻¹) < 1. In fact it is ≤ 1, because modes with λ = 0 are not damped. A stencil of zero
# mean has λ = 0 at frequency zero, so it keeps the mean of the features. An edge stencil has more such modes: every
# pattern that it maps to zero.

# %%
edge = jnp.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])[..., None] / 8
for name, θ in {"Laplacian": stencil, "edge": edge, "Laplacian + 0.1 δ": stencil.at[1, 1].add(0.1)}.items():
    factors = analysis.spectrum(lambda y, θ=θ: lowcost.depthwise_resolvent(θ, y, 1.0), grid, 1)
    kept = int((lowcost.squared_modulus(lowcost.symbol(θ, grid)) < 1e-12).sum())
    print(f"{name:<18} ρ = {float(jnp.abs(factors).max()):.6f}, {kept} of {factors.size} eigenvalues are 1")
print(f"mean before and after: {float(noise.mean()):.6f}, {float(implicit(noise, 100.0).mean()):.6f}")

# %% [markdown]
# ## How far the implicit step reaches
#
# The implicit step is a convolution with the Green's function g: (I + hKᵀK)⁻¹ y = g ∗ y. It couples all pixels. The
# coupling decays with the distance, more slowly for larger h.

# %%
steps = (1.0, 10.0, 100.0)
figure, axes = plt.subplots(2, 2, figsize=(9, 7.2), layout="constrained")
for ax, h in zip(axes.flat, steps, strict=False):
    plots.green_function(analysis.green_function(stencil, grid, h), ax=ax).set_title(f"|g|, h = {h:g}")
for i, h in enumerate(steps):
    tail = analysis.green_tail(analysis.green_function(stencil, grid, h))[:, 0]
    axes[1, 1].semilogy(jnp.maximum(tail, 1e-7), color=plt.cm.viridis(i / len(steps)), label=f"h = {h:g}")
axes[1, 1].set(title="weight of g beyond r", xlabel="r, pixels", ylim=(1e-5, 2))
axes[1, 1].legend()
plt.show()

# %% [markdown]
# So an implicit step is a convolution with a large stencil that has only nine weights. For devices that only have
# convolutions, `lowcost.deploy.truncate` cuts g off at a radius r. The error is at most the weight of g beyond r. The
# table lists the smallest r for two tolerances.

# %%
print("      h   r for 1 %   r for 0.01 %, of 32 pixels")
for h in (0.1, 1.0, 10.0, 100.0, 1000.0):
    green = analysis.green_function(stencil, grid, h)
    radii = [int(analysis.support_radius(green, tolerance)[0]) for tolerance in (1e-2, 1e-4)]
    print(f"{h:>7g} {radii[0]:>11} {radii[1]:>14}")
