"""The layers compute what `flax.linen.Conv` computes with the operator's dense kernel, argument by argument."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from lowcost import convert
from lowcost.nn import Circulant, Depthwise, ImplicitDiffusion, LinearMix
from lowcost.operators.circulant import as_fully_coupled

GRIDS = {1: (7,), 2: (6, 5), 3: (4, 5, 4)}
PADDINGS = ("SAME", "CIRCULAR", "REFLECT")
C = 4
over_layers = pytest.mark.parametrize("layer", [Depthwise, LinearMix, Circulant, ImplicitDiffusion])


def dense_kernel(params):
    """Returns Conv's kernel [*window, C, C] for a layer's parameters."""
    θ, eye = params["stencil"], jnp.eye(C)
    kernel = jnp.einsum("...c,cd->...cd", θ, eye)
    centre = tuple(m // 2 for m in θ.shape[:-1])
    return kernel.at[centre].add(params["matrix"]) if "matrix" in params else kernel


def random_parameters(module, y, key=0):
    """Returns random parameters, including the bias."""
    tree = jax.eval_shape(module.init, jax.random.key(0), y)["params"]
    keys = jax.random.split(jax.random.key(key), len(tree))
    return {name: jax.random.normal(k, x.shape, x.dtype) for k, (name, x) in zip(keys, tree.items(), strict=True)}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("layer", [Depthwise, LinearMix, Circulant])
def test_it_is_conv_with_the_dense_kernel(layer, dims, padding):
    y = jax.random.normal(jax.random.key(1), (2, *GRIDS[dims], C))
    kernel_size = (3, 1, 3)[:dims]
    module = layer(C, kernel_size, padding=padding)
    params = random_parameters(module, y)
    kernel = as_fully_coupled(params["stencil"]) if layer is Circulant else dense_kernel(params)
    conv = nn.Conv(C, kernel_size, padding=padding)
    expected = conv.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, y)
    np.testing.assert_allclose(module.apply({"params": params}, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [Depthwise, LinearMix, Circulant])
def test_symmetric_padding_is_numpys(layer):
    """The result is that on an image padded by NumPy, cut back to the image."""
    y = jax.random.normal(jax.random.key(1), (2, 6, 5, C))
    padded = np.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="symmetric")
    params = random_parameters(layer(C, (3, 3)), y)
    expected = layer(C, (3, 3)).apply({"params": params}, padded)[:, 1:-1, 1:-1]
    result = layer(C, (3, 3), padding="SYMMETRIC").apply({"params": params}, y)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_depthwise_is_conv_of_one_feature_a_group(padding):
    """θ is the kernel of that Conv without its axis of one."""
    y = jax.random.normal(jax.random.key(1), (2, 6, 5, C))
    conv = nn.Conv(C, (3, 3), padding=padding, feature_group_count=C)
    params = random_parameters(conv, y)
    own = {"stencil": params["kernel"].squeeze(-2), "bias": params["bias"]}
    result = Depthwise(C, (3, 3), padding=padding).apply({"params": own}, y)
    np.testing.assert_allclose(result, conv.apply({"params": params}, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("padding", "boundary"), [("CIRCULAR", "periodic"), ("SYMMETRIC", "symmetric")])
def test_implicit_diffusion_is_the_resolvent(padding, boundary):
    y = jax.random.normal(jax.random.key(1), (2, 6, 5, C))
    module = ImplicitDiffusion(C, (3, 3), h=0.7, padding=padding)
    params = random_parameters(module, y)
    expected = lowcost.depthwise_resolvent(params["stencil"], y, 0.7, boundary=boundary)
    expected += params["bias"][None, None, None]
    np.testing.assert_allclose(module.apply({"params": params}, y), expected, rtol=1e-6, atol=1e-6)


@over_layers
def test_any_leading_axes_as_conv(layer):
    y = jax.random.normal(jax.random.key(1), (2, 3, 6, 5, C))
    module = layer(C, (3, 3))
    params = random_parameters(module, y)
    whole = module.apply({"params": params}, y)
    np.testing.assert_allclose(whole[1, 2], module.apply({"params": params}, y[1, 2]), atol=1e-5)
    assert layer(C, 3).init(jax.random.key(0), y[0, 0, 0])["params"]["stencil"].shape == (3, C)  # a number is one axis


@over_layers
@pytest.mark.parametrize(
    ("dtype", "inputs", "result"),
    [
        (None, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16, jnp.float32),
    ],
)
def test_dtypes_as_conv(layer, dtype, inputs, result):
    y = jnp.ones((1, 6, 5, C), inputs)
    for module in (layer(C, (3, 3), dtype=dtype), nn.Conv(C, (3, 3), dtype=dtype)):
        outputs, variables = jax.eval_shape(partial(module.init_with_output, jax.random.key(0)), y)
        assert outputs.dtype == result
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@over_layers
def test_options_as_conv(layer):
    y = jnp.ones((1, 6, 5, C))
    ones = jax.nn.initializers.ones
    module = layer(C, (3, 3), use_bias=False, param_dtype=jnp.bfloat16, kernel_init=ones)
    params = module.init(jax.random.key(0), y)["params"]
    assert "bias" not in params
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert (params["stencil"] == 1).all()
    assert (layer(C, (3, 3), bias_init=ones).init(jax.random.key(0), y)["params"]["bias"] == 1).all()


@pytest.mark.parametrize("layer", [Depthwise, LinearMix, Circulant])
def test_at_first_the_variance_is_kept(layer):
    """Inputs of variance 1 give outputs of variance 1, as with Conv's initialiser, however weights are shared."""
    c = 256
    y = jax.random.normal(jax.random.key(1), (8, 8, 8, c))
    outputs, _ = layer(c, (3, 3), padding="CIRCULAR").init_with_output(jax.random.key(0), y)
    np.testing.assert_allclose(jnp.var(outputs), 1, rtol=0.1)


def test_a_dense_kernel_is_taken_over():
    """`convert` gives the exact parameters if Conv's kernel has the layer's form."""
    y = jax.random.normal(jax.random.key(1), (2, 6, 5, C))
    conv = nn.Conv(C, (3, 3))
    bias = jax.random.normal(jax.random.key(2), (C,))
    module = LinearMix(C, (3, 3))
    kernel = dense_kernel(random_parameters(module, y))
    stencil, matrix, error = convert.to_linear_mix(kernel)
    assert error < 1e-6
    result = module.apply({"params": {"stencil": stencil, "matrix": matrix, "bias": bias}}, y)
    expected = conv.apply({"params": {"kernel": kernel, "bias": bias}}, y)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@over_layers
def test_bad_layers_are_refused(layer):
    y, key = jnp.ones((1, 6, 5, C)), jax.random.key(0)
    with pytest.raises(ValueError, match=rf"which {layer.__name__} keeps, got features=8 and inputs .*\[1, 6, 5, 4\]"):
        layer(8, (3, 3)).init(key, y)
    with pytest.raises(ValueError, match=r"padding must be one of .*'CIRCULAR'.* here, got 'VALID'"):
        layer(C, (3, 3), padding="VALID").init(key, y)
    with pytest.raises(ValueError, match=r"stencil must have from 1 to 6x5 points, .* got 9x9"):
        layer(C, (9, 9)).init(key, y)
    with pytest.raises(TypeError, match="inputs must be real floating point, got int32"):
        layer(C, (3, 3)).init(key, y.astype(jnp.int32))


def test_implicit_diffusion_wraps_around_or_mirrors():
    for padding in ("SAME", "REFLECT"):
        message = f"padding must be one of 'CIRCULAR', 'SYMMETRIC' here, got '{padding}'; use 'SYMMETRIC' if"
        with pytest.raises(ValueError, match=message):
            ImplicitDiffusion(C, (3, 3), padding=padding).init(jax.random.key(0), jnp.ones((1, 6, 5, C)))
    with pytest.raises(ValueError, match="h must be a finite time step ≥ 0, got -1"):
        ImplicitDiffusion(C, (3, 3), h=-1.0).init(jax.random.key(0), jnp.ones((1, 6, 5, C)))


@pytest.mark.parametrize("kernel_size", [(3, 2), [3, 2], np.array([3, 2]), (np.int64(3), np.int8(2))], ids=repr)
def test_sizes_may_be_numpys(kernel_size):
    """Sizes may be whole numbers of any type; others are refused."""
    y = jnp.ones((1, 4, 5, C))
    shapes = jax.eval_shape(Depthwise(np.int64(C), kernel_size).init, jax.random.key(0), y)["params"]
    assert shapes["stencil"].shape == (3, 2, C)
    one = jax.eval_shape(Depthwise(C, np.int64(3)).init, jax.random.key(0), y)["params"]
    assert one["stencil"].shape == (3, C)
    with pytest.raises(TypeError):
        Depthwise(C, (3.5, 2)).init(jax.random.key(0), y)
