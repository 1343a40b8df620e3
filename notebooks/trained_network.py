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
# # A trained network
#
# We train two networks of the paper on handwritten digits, one with explicit and one with implicit reaction-diffusion
# steps. Then we look at the stencils and symbols that they learned, at their receptive fields and at their stability.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lowcost
from lowcost import data, nn, plots
from lowcost.train.state import count_weights, create_state
from lowcost.train.step import make_eval_step, make_train_step, mean_metrics

digits = data.load("digits")
print(f"{len(digits.train):,} training and {len(digits.test)} test images of {digits.image_shape}")

# %% [markdown]
# ## Train
#
# `make_train_step` returns a pure function (state, batch) → state. A loop around it is enough here; the programs in
# `experiments/` add checkpoints, several devices and recipes. The networks are small: blocks of 16 and 32 channels
# with two steps each.

# %%
EPOCHS, BATCH = 8, 100


def train(architecture):
    """Returns the network and its trained variables."""
    net = nn.network(architecture, (16, 32), len(digits.classes), steps_per_block=2)
    batches = len(digits.train) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, EPOCHS * batches))
    step = jax.jit(make_train_step(net, optimizer, lambda images, draw: images, batches))
    evaluate = jax.jit(make_eval_step(net))
    state = jax.jit(lambda key: create_state(net, optimizer, key, digits.image_shape))(jax.random.key(0))
    for i in range(EPOCHS * batches):
        rows = data.batch_indices(0, i, len(digits.train), BATCH)
        state = step(state, digits.train.images[rows], digits.train.labels[rows], rows)
        if (i + 1) % batches == 0:
            done = (i + 1) // batches
            bar = "█" * done + "·" * (EPOCHS - done)
            print(f"\r{architecture}  {bar}  loss {mean_metrics(state.metrics)['loss']:.4f}", end="")
    test = digits.test
    sums = evaluate(state.variables, test.images, test.labels, jnp.ones(len(test)))
    accuracy = mean_metrics(sums)["accuracy"]
    print(f"\n{count_weights(state.params):,} weights, test accuracy {accuracy:.2%} of {len(test)} images")
    return net, state.variables


networks = {name: train(name) for name in ("explicit_rd", "implicit_rd")}

# %% [markdown]
# ## The stencils
#
# The first plot shows the stencils of the first step, one per channel, and the second their symbols. A channel's
# diffusion damps the bright frequencies. A bright centre damps constants, and a bright rim the finest patterns. Two
# bright spots opposite each other damp edges of one direction.

# %%
net, variables = networks["implicit_rd"]
first = next(x for x in nn.bound_layers(net, variables, digits.image_shape) if x.name == "block1_step1")
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
plots.stencils(variables["params"][first.name]["stencil"], ax=axes[0])
plots.symbol(first.module.symbol((32, 32)), ax=axes[1])
plt.show()

# %% [markdown]
# ## Stiffness
#
# We plot h·max|λ|² of every step. Above 2, the black line, an explicit step amplifies some mode. Training does not
# prevent this. The implicit step is stable for every value.

# %%
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for marker, (name, (net, variables)) in zip("os", networks.items(), strict=True):
    report = nn.stability_report(net, variables, digits.image_shape)
    stiffness = [layer.stiffness for layer in report.layers if layer.stiffness is not None]
    ax.plot(range(1, len(stiffness) + 1), stiffness, marker + "-", label=name)
ax.axhline(2, color="black", linewidth=1)
ax.set(xlabel="step", ylabel="h max|λ|²", xticks=range(1, len(stiffness) + 1), ylim=(0, 1.25 * ax.get_ylim()[1]))
ax.legend(loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# ## The receptive field
#
# We compute the gradient of the features at one pixel, after the two steps of the first block, with respect to the
# image. The networks take images of any size; we use 48x48 pixels. The explicit network cannot see farther than 6
# pixels: 2 for the opening's stencil, and 2 for KᵀK in each step. The implicit network has no such limit. The
# influence of a pixel decays with the distance.


# %%
def influence(net, variables, size=48):
    """Returns the mean over four images of Σ |∂ features at the centre / ∂ image|, [size, size]."""

    def features(image):
        _, state = net.apply(variables, image[None], capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]["block1_step2"]["__call__"][0][0, size // 2, size // 2]

    images = jax.random.uniform(jax.random.key(0), (4, size, size, 1))
    return jnp.abs(jax.jit(jax.vmap(jax.jacrev(features)))(images)).mean(0).sum((0, 3))


figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, (name, (net, variables)) in zip(axes, networks.items(), strict=True):
    field = influence(net, variables)
    plots.green_function(field[..., None], ax=ax).set_title(name)
    distance = jnp.abs(jnp.stack(jnp.nonzero(field > 1e-7 * field.max())) - 24).max()
    print(f"{name}: pixels up to {distance} away have more than 10⁻⁷ of the largest influence")
plt.show()

# %% [markdown]
# ## The stability report
#
# The report lists, for every layer, the stiffness h·max|λ|², the smallest and the largest factor of its diffusion,
# and a bound on how much it amplifies the difference of two images. The last line bounds the whole network. `python
# -m experiments.spectra` prints the same report for a work directory.

# %%
for name, (net, variables) in networks.items():
    print(name)
    print(nn.stability_report(net, variables, digits.image_shape), end="\n\n")

# %% [markdown]
# ## A released network
#
# Trained networks come with the package. This one has learned to classify CIFAR-10 images. The plots show the stencils
# of its first step, and how far the last step spreads a pixel in the first channel: the Green's function on the grid
# of the last block.

# %%
released = lowcost.load("cifar10-implicit_rd-A")
print("\n".join(f"{name}: {value}" for name, value in released.card.items()))
first, last = (released.variables["params"][name]["stencil"] for name in ("block1_step1", "block3_step4"))
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
plots.stencils(first, ax=axes[0])
plots.green_function(lowcost.analysis.green_function(last, (8, 8), h=1.0), ax=axes[1])
plt.show()
