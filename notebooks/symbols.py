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
# # From a stencil to its symbol
#
# A periodic convolution is diagonal in the Fourier basis. Its diagonal, the symbol λ, says what the operator does to
# every frequency: `depthwise` multiplies by λ, diffusion by -|λ|², the implicit step by 1 / (1 + h|λ|²).
#
# Open this file as a notebook with jupytext, or run it as a program.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lowcost
from lowcost import analysis

stencil = jnp.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[..., None] / 4  # a Laplacian, one channel
grid = (64, 64)
symbol = lowcost.symbol(stencil, grid)
print("max|λ|² =", float(lowcost.power(symbol).max()))
print("the explicit step is stable up to h =", float(analysis.max_stable_step(symbol)))

# %% [markdown]
# The mean has frequency zero, where λ = 0: its factor is exactly 1 in every scheme, so ρ ≤ 1 and not < 1.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
picture = axes[0].imshow(jnp.fft.fftshift(lowcost.power(symbol)[..., 0]), extent=(-0.5, 0.5, -0.5, 0.5))
axes[0].set(title="|λ|²", xlabel="frequency", ylabel="frequency")
figure.colorbar(picture, ax=axes[0])
z = jnp.linspace(0, 4, 200)
for name, integrator in lowcost.time_stepping.INTEGRATORS.items():
    axes[1].plot(z, integrator.factor(z), label=name.replace("_", " "))
axes[1].axhline(-1, color="grey", linewidth=0.5)
axes[1].set(title="factor of one step", xlabel="h|λ|²")
axes[1].legend(fontsize=8)
for h in (0.1, 1.0, 10.0, 100.0):
    axes[2].semilogy(analysis.green_tail(analysis.green_function(stencil, grid, h))[:, 0], label=f"h = {h:g}")
axes[2].set(title="implicit step: weight beyond r", xlabel="r, pixels", ylim=(1e-6, 2))
axes[2].legend(fontsize=8)
plt.show()
