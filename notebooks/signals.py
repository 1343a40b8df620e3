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
# # Signals
#
# The operators of the paper take grids of one to four axes. Here the grid is time. We train a network with implicit
# steps on a recorded signal set in less than a minute, and look at the symbols that it learned: which frequencies its
# steps keep, and how far they see.
#
# GunPoint holds the height of an actor's hand while he draws a gun and aims it (class 1), or points with his finger
# (class 2). The data comes with the package aeon: `pip install '.[signals]'`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from aeon.datasets import load_classification

from lowcost import data, nn, plots
from lowcost.train.state import count_weights, create_state
from lowcost.train.step import make_eval_step, make_train_step, mean_metrics


def signals(split):
    """Returns float32 [N, points, 1], each with mean 0 and deviation 1, and int32 [N]."""
    values, labels = load_classification("GunPoint", split=split)
    return jnp.asarray(values.swapaxes(1, 2), jnp.float32), jnp.asarray(labels == "2", jnp.int32)


(train_signals, train_labels), (test_signals, test_labels) = signals("train"), signals("test")
print(f"{len(train_signals)} training and {len(test_signals)} test signals of {train_signals.shape[1]} points")

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for label, (ax, name) in enumerate(zip(axes, ("gun", "finger"), strict=True)):
    ax.plot(train_signals[train_labels == label, :, 0].T, color=f"C{label}", alpha=0.4)
    ax.set(title=name, xlabel="time")
plt.show()

# %% [markdown]
# ## Train
#
# The step function and the network are those for images. The network finds the dimension from the shape of its input
# [B, points, C]. Noise is the only augmentation.

# %%
EPOCHS, BATCH = 200, 10

net = nn.network("implicit_rd", (12, 24), num_classes=2, steps_per_block=2)
batches = len(train_signals) // BATCH
optimizer = optax.adam(optax.cosine_decay_schedule(0.01, EPOCHS * batches))


def noisy(signals, draw):
    """Adds noise of deviation 0.05."""
    return signals + 0.05 * jax.random.normal(draw.step, signals.shape)


step = jax.jit(make_train_step(net, optimizer, noisy, batches))
state = jax.jit(lambda key: create_state(net, optimizer, key, train_signals.shape[1:]))(jax.random.key(0))
for i in range(EPOCHS * batches):
    rows = data.batch_indices(0, i, len(train_signals), BATCH)
    state = step(state, train_signals[rows], train_labels[rows], rows)
    if (i + 1) % (20 * batches) == 0:
        print(f"epoch {(i + 1) // batches}  loss {mean_metrics(state.metrics)['loss']:.4f}")

sums = jax.jit(make_eval_step(net))(state.variables, test_signals, test_labels, jnp.ones(len(test_labels)))
accuracy = mean_metrics(sums)["accuracy"]
print(f"{count_weights(state.params):,} weights, test accuracy {accuracy:.1%} of {len(test_labels)} signals")

# %% [markdown]
# ## What the steps keep
#
# An implicit step applies (I + h KᵀK)⁻¹. It multiplies the wave of frequency k by 1 / (1 + h|λ_k|²), a number between 0
# and 1. We plot this factor for the four steps, one curve per channel. If a curve starts at 1 and falls, the
# step smooths this channel. If it starts low and rises, the step weakens the mean and keeps changes. A flat curve keeps
# the shape of the signal.

# %%
steps = [x for x in nn.bound_layers(net, state.variables, train_signals.shape[1:]) if "step" in x.name]
figure, axes = plt.subplots(1, len(steps), figsize=(11, 3), layout="constrained", sharey=True)
for ax, layer in zip(axes, steps, strict=True):
    factors = 1 / (1 + layer.module.h * jnp.abs(layer.module.symbol(layer.grid)) ** 2)
    points = layer.grid[0]
    frequencies = jnp.arange(points // 2 + 1) / points
    ax.plot(frequencies, factors[: points // 2 + 1], color="C0", alpha=0.5)
    ax.set(title=layer.name, xlabel="cycles per point", ylim=(0, 1.05))
axes[0].set_ylabel("factor of the step")
plt.show()

# %% [markdown]
# ## How far they see
#
# The Green's function is the response of a step to a single point: how strongly it couples points at each distance. It
# decays exponentially, and channels differ in how fast. The explicit step with the same stencil reaches two points.

# %%
figure, axes = plt.subplots(1, len(steps), figsize=(11, 3), layout="constrained", sharey=True)
for ax, layer in zip(axes, steps, strict=True):
    green = layer.operations()[-1].response
    for channel in range(green.shape[-1]):
        plots.green_function(green, channel=channel, ax=ax)
    ax.set(title=layer.name, xlabel="distance, points", ylabel="", xlim=(-15, 15))
plt.show()

# %% [markdown]
# ## Which points decide
#
# The gradient of the difference of the two logits with respect to the signal shows which points of the signal change
# the decision. It is drawn below two test signals, one of each class.


# %%
def evidence(signal):
    """Returns the logit of the finger minus that of the gun."""
    gun, finger = net.apply(state.variables, signal[None])[0]
    return finger - gun


gradients = jax.jit(jax.vmap(jax.grad(evidence)))(test_signals)
figure, axes = plt.subplots(2, 2, figsize=(9, 4.5), layout="constrained", sharex=True, sharey="row")
for label, name in enumerate(("gun", "finger")):
    chosen = int(jnp.argmax(test_labels == label))
    axes[0, label].plot(test_signals[chosen, :, 0], color=f"C{label}")
    axes[0, label].set_title(name)
    axes[1, label].bar(jnp.arange(test_signals.shape[1]), gradients[chosen, :, 0], width=1, color="0.4")
    axes[1, label].set_xlabel("time")
axes[0, 0].set_ylabel("signal")
axes[1, 0].set_ylabel("gradient")
plt.show()
