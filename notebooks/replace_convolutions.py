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
# A plain Flax CNN takes its convolution as an attribute. `lowcost.nn` has layers with the arguments of
# `flax.linen.Conv`, so they can take its place where the channels stay as many: before training, or after it, with
# the weights that `lowcost.convert` takes out of the trained kernels.

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
    """Five 3x3 convolutions; `conv` makes the four that keep the channels."""

    conv: type[nn.Module] = nn.Conv
    features: int = 32

    @nn.compact
    def __call__(self, images):
        y = nn.relu(nn.Conv(self.features, (3, 3), name="opening")(images))
        for i in range(4):
            y = nn.relu(self.conv(self.features, (3, 3), name=f"conv{i + 1}")(y))
        y = nn.max_pool(y, (2, 2), (2, 2))
        return nn.Dense(10, name="classifier")(y.reshape(len(y), -1))


# %%
@partial(jax.jit, static_argnames=("net", "optimizer"))
def step(net, optimizer, params, state, images, labels):
    """One step of training."""

    def loss(params):
        logits = net.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def fit(net, params, learning_rate, epochs, batch_size=100):
    """Adam with a cosine schedule."""
    batches = len(train[0]) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs * batches))
    state = optimizer.init(params)
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(train[0]))
        for i in range(batches):
            chosen = order[i * batch_size : (i + 1) * batch_size]
            params, state = step(net, optimizer, params, state, train[0][chosen], train[1][chosen])
    return params


def report(what, net, params):
    """Weights, accuracy, and the time in which all test images are classified, once compiled."""
    weights = sum(x.size for x in jax.tree.leaves(params))
    classify = jax.jit(net.apply)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        logits = jax.block_until_ready(classify({"params": params}, test[0]))
        seconds.append(time.perf_counter() - start)
    accuracy = (logits.argmax(-1) == test[1]).mean()
    print(f"{what:<28}{weights:>7,} weights  test accuracy {accuracy:6.1%}  {1000 * min(seconds[1:]):5.1f} ms")


# %% [markdown]
# ## Before training
#
# The same network with other convolutions. Of a layer's 9,248 weights LinearMix keeps 1,344 and Circulant 320. The
# time is that of all 360 test images. On a CPU and so small a grid the dense convolution, from a library tuned for
# decades, is not slower than they are: what is gained here is weights.

# %%
trained = {}
for conv in (nn.Conv, LinearMix, Circulant):
    net = CNN(conv)
    params = net.init(jax.random.key(0), train[0][:1])["params"]
    trained[conv] = fit(net, params, 3e-3, epochs=6)
    report(f"{conv.__name__}, trained", net, trained[conv])

# %% [markdown]
# ## After training
#
# `convert` gives the nearest operator of the class in the Frobenius norm, and how much of the kernel is lost. It is
# much, since nothing told the dense network to be cheap. What is left is smaller by √(1 - error²), which four layers
# after one another do not survive, so it is given back its norm; then a short fine-tune, which needs fewer steps than
# training anew. (Of Circulant next to nothing is left: train that one from the beginning.)

# %%
net, params = CNN(LinearMix), dict(trained[nn.Conv])
for name in ("conv1", "conv2", "conv3", "conv4"):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    stencil, matrix, error = convert.to_linear_mix(kernel)
    scale = 1 / jnp.sqrt(1 - error**2)
    params[name] = {"stencil": scale * stencil, "matrix": scale * matrix, "bias": bias}
    print(f"{name}: lost as LinearMix {error:.2f}, as Circulant {convert.to_circulant(kernel).error:.2f}")
report("LinearMix, converted", net, params)
report("LinearMix, and two epochs on", net, fit(net, params, 3e-3, epochs=2))
anew = net.init(jax.random.key(0), train[0][:1])["params"]
report("LinearMix, two epochs anew", net, fit(net, anew, 3e-3, epochs=2))
