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
# # Replace the convolutions of your own CNN
#
# The layers of `lowcost.nn` name their arguments as `flax.linen.Conv` does. They can replace a `Conv` with stride 1, an
# odd kernel size, and as many output as input channels. You can replace it before training, or after training with
# weights from `lowcost.convert`.
#
# The CNN below takes the class of its convolutions as an attribute.

# %%
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lowcost import convert, data
from lowcost.nn import Circulant, LinearMix

digits = data.load("digits")
train, test = ((jnp.asarray(part.images) / 255, jnp.asarray(part.labels)) for part in (digits.train, digits.test))


# %%
class CNN(nn.Module):
    """Has five 3x3 convolutions; the four that keep the number of channels are of the class `conv`."""

    conv: type[nn.Module] = nn.Conv
    features: int = 16

    @nn.compact
    def __call__(self, images):
        y = nn.relu(nn.Conv(self.features, (3, 3), name="opening")(images))
        for i in range(4):
            y = nn.relu(self.conv(self.features, (3, 3), name=f"conv{i + 1}")(y))
        y = nn.max_pool(y, (2, 2), (2, 2))
        return nn.Dense(10, name="classifier")(y.reshape(len(y), -1))


# %%
optimizer = optax.adam(3e-3)


@partial(jax.jit, static_argnames="net")
def step(net, params, state, images, labels):
    """Takes one training step."""

    def loss(params):
        logits = net.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def fit(net, params, epochs, batch_size=100):
    """Returns the trained weights."""
    batches = len(train[0]) // batch_size
    state = optimizer.init(params)
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(train[0]))
        for i in range(batches):
            chosen = order[i * batch_size : (i + 1) * batch_size]
            params, state = step(net, params, state, train[0][chosen], train[1][chosen])
    return params


def report(name, net, params):
    """Prints the number of weights, the accuracy, and the shortest time of classifying all test images."""
    weights = sum(x.size for x in jax.tree.leaves(params))
    classify = jax.jit(net.apply)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        logits = jax.block_until_ready(classify({"params": params}, test[0]))
        seconds.append(time.perf_counter() - start)
    accuracy = (logits.argmax(-1) == test[1]).mean()
    print(f"{name:<28}{weights:>7,} weights  test accuracy {accuracy:6.1%}  {1000 * min(seconds[1:]):5.1f} ms")


# %% [markdown]
# ## Before training
#
# We train the same network with three kinds of convolutions. A dense layer has 2,320 weights, LinearMix 416 and
# Circulant 160. On a CPU and a small grid the cheap layers are not always faster. What they save here is weights.

# %%
trained = {}
for conv in (nn.Conv, LinearMix, Circulant):
    net = CNN(conv)
    params = net.init(jax.random.key(0), train[0][:1])["params"]
    trained[conv] = fit(net, params, epochs=6)
    report(f"{conv.__name__}, trained", net, trained[conv])

# %% [markdown]
# ## After training
#
# `convert` returns the operator of a class that is nearest to the kernel in the Frobenius norm, and the relative
# error. The error is large, because the dense network was not trained to be cheap. The norm of a converted kernel is
# √(1 - error²) times the original one. Over four layers the features would almost vanish, so we restore the norm.
#
# Then we fine-tune. After two epochs the converted network is better than one trained from scratch for two epochs.
# Conversion to Circulant loses almost all of a kernel, so train that layer from scratch.

# %%
net, params = CNN(LinearMix), dict(trained[nn.Conv])
for name in ("conv1", "conv2", "conv3", "conv4"):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    stencil, matrix, error = convert.to_linear_mix(kernel)
    scale = 1 / jnp.sqrt(1 - error**2)
    params[name] = {"stencil": scale * stencil, "matrix": scale * matrix, "bias": bias}
    print(f"{name}: error as LinearMix {error:.2f}, as Circulant {convert.to_circulant(kernel).error:.2f}")
report("LinearMix, converted", net, params)
report("LinearMix, fine-tuned", net, fit(net, params, epochs=2))
scratch = net.init(jax.random.key(0), train[0][:1])["params"]
report("LinearMix, from scratch", net, fit(net, scratch, epochs=2))
