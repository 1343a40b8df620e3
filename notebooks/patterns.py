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
# # Reaction-diffusion patterns
#
# The steps of the paper's networks solve reaction-diffusion equations. Such equations are known for the patterns that
# they form. The equations of Gray and Scott describe two substances, u and v, where v feeds on u:
#
# ∂ₜu = Dᵤ Δu - u v² + F (1 - u), ∂ₜv = Dᵥ Δv + u v² - (F + k) v.
#
# Their solutions grow spots, stripes and mazes from small seeds. We solve them with `imex_euler` and
# `depthwise_resolvent`, the functions that `lowcost.nn.ImplicitRDStep` is made of.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation

import lowcost

# %% [markdown]
# ## The equation as operators
#
# The channels are u and v. With the difference stencil θ = √D (-1, 1) along an axis, -KᵀK is D times the second
# derivative along that axis. The operator is depth-wise, so each channel has its own D. The implicit step treats the
# two axes one after the other.

# %%
size, D = 128, jnp.array([0.64, 0.32])
difference = jnp.stack([-jnp.sqrt(D), jnp.sqrt(D)])  # θ [2, C]
vertical, horizontal = difference[:, None], difference[None]  # [2, 1, C] and [1, 2, C]

# Four patterns as a batch, one for each pair of feed F and kill k.
patterns = {
    "spots": (0.030, 0.062),
    "stripes": (0.040, 0.060),
    "coral": (0.0545, 0.062),
    "holes": (0.039, 0.058),
}
F, k = (jnp.array(values)[:, None, None] for values in zip(*patterns.values(), strict=True))


def reaction(y):
    """r(y), pixel by pixel."""
    u, v = y[..., 0], y[..., 1]
    return jnp.stack([-u * v**2 + F * (1 - u), u * v**2 - (F + k) * v], axis=-1)


def resolvent(y, h):
    """(I - hD ∂²/∂x²)⁻¹ (I - hD ∂²/∂y²)⁻¹ y."""
    return lowcost.depthwise_resolvent(horizontal, lowcost.depthwise_resolvent(vertical, y, h), h)


def diffusion(y):
    """D Δy."""
    return lowcost.depthwise_diffusion(vertical, y) + lowcost.depthwise_diffusion(horizontal, y)


implicit = partial(lowcost.imex_euler, resolvent, reaction)  # (y, h) ↦ y, Eq. (11)
explicit = partial(lowcost.forward_euler, lowcost.reaction_diffusion(diffusion, reaction))  # Eq. (9)

# %% [markdown]
# ## Grow
#
# We start from u = 1 and v = 0, with some v in a few places, and compute 4,000 units of time. The steps are about
# three times as large as the limit of the explicit scheme.


# %%
@partial(jax.jit, static_argnames=("step", "n"))
def run(step, y, h, n):
    """Takes n steps."""
    return jax.lax.fori_loop(0, n, lambda _, y: step(y, h), y)


places = jax.random.uniform(jax.random.key(1), (size // 8, size // 8)) < 0.1
seeds = jnp.kron(places, jnp.ones((8, 8)))
start = jnp.broadcast_to(jnp.stack([1 - 0.5 * seeds, 0.25 * seeds], axis=-1), (4, size, size, 2))
h, frames = 1.25, [start]
for _ in range(40):
    frames.append(run(implicit, frames[-1], h, 80))

figure, axes = plt.subplots(2, 2, figsize=(8, 8.4), layout="constrained")
for ax, name, y in zip(axes.flat, patterns, frames[-1], strict=True):
    ax.imshow(y[..., 1], cmap="magma", vmin=0, vmax=0.4)
    ax.set(title=f"{name}: F = {patterns[name][0]:g}, k = {patterns[name][1]:g}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Watch

# %%
plt.rcParams |= {"animation.html": "jshtml", "animation.frame_format": "jpeg"}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.1), dpi=60, layout="constrained")
images = [ax.imshow(y[..., 1], cmap="magma", vmin=0, vmax=0.4) for ax, y in zip(axes, start, strict=True)]
for ax in axes:
    ax.axis("off")


def draw(i):
    """Draws the i-th frame."""
    for image, y in zip(images, frames[i], strict=True):
        image.set_data(y[..., 1])


animation = FuncAnimation(figure, draw, frames=len(frames), interval=100)
plt.close(figure)
animation

# %% [markdown]
# ## How large a step
#
# The explicit scheme is stable up to h = 2 / max|λ|². Slightly above this limit the finest pattern grows until it
# overflows. The diffusion of the implicit scheme is stable for every h. Its reaction is still explicit, and blows up
# at a hundred times the limit.

# %%
powers = [lowcost.squared_modulus(lowcost.symbol(θ, (size, size))) for θ in (vertical, horizontal)]
limit = float(2 / sum(powers).max())
print(f"the explicit limit is h = {limit:.3f}; the patterns after 100 more units of time are")
for factor in (0.95, 1.05, 1.5, 3.0, 8.0, 100.0):
    h = factor * limit
    ends = [run(step, frames[-1], h, max(10, round(100 / h))) for step in (explicit, implicit)]
    states = ["bounded" if bool((jnp.abs(y) < 2).all()) else "blown up" for y in ends]
    print(f"h = {h:5.2f}, {factor:5g} of the limit    explicit {states[0]:<8}    implicit {states[1]}")
