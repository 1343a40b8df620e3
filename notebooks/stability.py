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
# Diffusion ∂ₜy = -KᵀK y calms features down, whatever the stencil. Whether its *steps* do depends on how they are
# taken: explicitly, Eq. (9), only while h·max|λ|² ≤ 2; implicitly, Eq. (11), always.

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
# A step multiplies each mode by R(h|λ|²). Blue modes die out, red ones grow at each step. The explicit step has a
# limit, the black line; the others have none. Crank–Nicolson is more exact than the implicit step for small h, but
# for large h it hardly damps the fastest modes: white again at the right.

# %%
figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
for ax, integrator in zip(axes.flat, lowcost.time_stepping.INTEGRATORS, strict=True):
    plots.stability_map(integrator, symbol, ax=ax)
plt.show()

# %% [markdown]
# ## Fifty steps of it
#
# The same noise, fifty steps on. A tenth beyond the limit the explicit step has multiplied its finest pattern by
# 1.2⁵⁰, about nine thousand (mind the scales); the implicit step, forty times beyond, has only smoothed more.

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
    picture = ax.imshow(y[..., 0], cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    ax.set(title=f"{name}, h = {h / limit:g} of the limit", xticks=[], yticks=[])
    figure.colorbar(picture, ax=ax, fraction=0.046, pad=0.04)
plt.show()

# %% [markdown]
# ## The eigenvalues that are exactly 1
#
# The paper says ρ((I + hKᵀK)⁻¹) < 1. It is ≤ 1: where λ = 0 nothing is damped. A stencil of zero mean has λ = 0 at
# frequency zero, so the mean of the features stays as it is. An edge stencil has more of them, one for each pattern
# that it does not see.

# %%
edge = jnp.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])[..., None] / 8
for name, θ in {"Laplacian": stencil, "edge": edge, "Laplacian + 0.1 δ": stencil.at[1, 1].add(0.1)}.items():
    factors = analysis.spectrum(lambda y, θ=θ: lowcost.depthwise_resolvent(θ, y, 1.0), grid, 1)
    unseen = int((lowcost.squared_modulus(lowcost.symbol(θ, grid)) < 1e-12).sum())
    print(f"{name:<18} ρ = {float(jnp.abs(factors).max()):.6f}, {unseen} of {factors.size} eigenvalues are 1")
print(f"mean before and after: {float(noise.mean()):.6f}, {float(implicit(noise, 100.0).mean()):.6f}")

# %% [markdown]
# ## How far the implicit step reaches
#
# (I + hKᵀK)⁻¹ y = g ∗ y with the Green's function g. It couples all pixels, and how much falls off with the distance:
# the larger h, the slower.

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
# So an implicit step is a convolution with a large stencil that costs nine weights. Where the weight beyond r is
# small enough, g can be cut off at r for devices that have only convolutions (`lowcost.deploy.truncation`), with an
# error that is known:

# %%
print("      h   r for 1 %   r for 0.01 %, of 32 pixels")
for h in (0.1, 1.0, 10.0, 100.0, 1000.0):
    green = analysis.green_function(stencil, grid, h)
    radii = [int(analysis.support_radius(green, tolerance)[0]) for tolerance in (1e-2, 1e-4)]
    print(f"{h:>7g} {radii[0]:>11} {radii[1]:>14}")
