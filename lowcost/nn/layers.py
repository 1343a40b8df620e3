"""Wraps operators as layers for any Flax network, which replace a `flax.linen.Conv` that keeps the channels.

Arguments have Conv's names and meaning. The arguments of Conv that no low-cost operator supports are missing.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from lowcost.arguments import Boundary, check_choice, check_floating
from lowcost.nn import initializers
from lowcost.nn.initializers import Initializer
from lowcost.operators.circulant import circulant
from lowcost.operators.depthwise import depthwise, depthwise_resolvent
from lowcost.operators.linear_mix import linear_mix

Padding = Literal["SAME", "CIRCULAR", "REFLECT", "SYMMETRIC"]

_BOUNDARIES: dict[str, Boundary] = {
    "SAME": "zeros",
    "CIRCULAR": "periodic",
    "REFLECT": "reflect",
    "SYMMETRIC": "symmetric",
}


class _Layer(nn.Module):
    """K y + b with b [features], computed in one dtype: the common part of all layers.

    Inputs are [..., *grid, features] with any leading axes and as many grid axes as `kernel_size` has entries. An even
    kernel is centred at index m // 2; Conv centres it at (m - 1) // 2.

    Attributes:
        features: channels, in and out.
        kernel_size: points of the stencil per axis; a single number is one axis, as in Conv.
        padding: "SAME" (zeros, the default as in Conv), "CIRCULAR" (the paper's periodic grid), "REFLECT", or
            "SYMMETRIC", which Conv lacks: a mirror image as in "REFLECT", but with the outermost point repeated.
            With "SAME" the norm is at most that on a periodic grid of n + m - 1 points.
        use_bias: whether b is added.
        dtype: of the computation and result; None means the dtype that inputs and weights promote to.
        param_dtype: of the weights.
        bias_init: initialiser of b.
    """

    features: int
    kernel_size: int | Sequence[int]
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    bias_init: Initializer = nn.initializers.zeros_init()

    def _stencil(self, init: Initializer) -> jax.Array:
        window = map(operator.index, np.atleast_1d(self.kernel_size))
        return self.param("stencil", init, (*window, self.features), self.param_dtype)

    def _apply(self, operator: Callable[..., jax.Array], inputs: jax.Array, *weights: jax.Array) -> jax.Array:
        """operator(*weights, inputs) + b, with the boundary that the padding states."""
        check_choice("padding", self.padding, tuple(_BOUNDARIES))
        check_floating("inputs", inputs)
        if inputs.shape[-1:] != (self.features,):
            expected = f"features must be the channels of the inputs, which {type(self).__name__} keeps"
            got = f"features={self.features} and inputs of shape {list(inputs.shape)}"
            raise ValueError(f"{expected}, got {got}; change the channels by a 1x1 Conv")
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        inputs, bias, *promoted = promote_dtype(inputs, bias, *weights, dtype=self.dtype)
        outputs = operator(*promoted, inputs, boundary=_BOUNDARIES[self.padding])
        return outputs if bias is None else outputs + jnp.expand_dims(bias, range(inputs.ndim - 1))


class Depthwise(_Layer):
    """K_dw(θ) y + b, Eq. (5): Conv with `feature_group_count=features`.

    Parameters: "stencil" θ [*kernel_size, features], which is Conv's kernel without its axis of size one; "bias".

    Attributes:
        features, kernel_size, padding, use_bias, dtype, param_dtype, bias_init: as in every layer of this module.
        kernel_init: initialiser of θ, with variance 1 / points as in Conv.

    Raises:
        TypeError: the inputs are not real floating point.
        ValueError: the inputs' channels are not `features`, the kernel is larger than the grid, unknown padding.
    """

    kernel_init: Initializer = initializers.depthwise_normal

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., *grid, features] → the same shape."""
        return self._apply(depthwise, inputs, self._stencil(self.kernel_init))


class LinearMix(_Layer):
    """K_dw(θ¹) y + M(θ²) y + b, Eq. (7): couples the pixels of a channel and the channels of a pixel.

    Parameters: "stencil" θ¹ [*kernel_size, features], "matrix" θ² [features, features], which
    `lowcost.convert.to_linear_mix` computes from Conv's kernel; "bias".

    Attributes:
        features, kernel_size, padding, use_bias, dtype, param_dtype, bias_init: as in every layer of this module.
        kernel_init: initialiser of θ¹, with half of the variance of `Depthwise`.
        matrix_init: initialiser of θ², with the other half.

    Raises:
        TypeError, ValueError: as in `Depthwise`.
    """

    kernel_init: Initializer = initializers.linear_mix_normal
    matrix_init: Initializer = initializers.linear_mix_matrix_normal

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., *grid, features] → the same shape."""
        stencil = self._stencil(self.kernel_init)
        matrix = self.param("matrix", self.matrix_init, (self.features, self.features), self.param_dtype)
        return self._apply(linear_mix, inputs, stencil, matrix)


class Circulant(_Layer):
    """K_circ(θ) y + b, Eq. (12): couples all pixels of the stencil and all channels, with as few weights as K_dw.

    Parameters: "stencil" θ [*kernel_size, features], which `lowcost.convert.to_circulant` computes; "bias".

    Attributes:
        features, kernel_size, padding, use_bias, dtype, param_dtype, bias_init: as in every layer of this module.
        kernel_init: initialiser of θ, with variance 1 / (points · features): `features` pairs share each weight.

    Raises:
        TypeError, ValueError: as in `Depthwise`.
    """

    kernel_init: Initializer = initializers.circulant_normal

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., *grid, features] → the same shape."""
        return self._apply(circulant, inputs, self._stencil(self.kernel_init))


class ImplicitDiffusion(_Layer):
    """(I + h K_dw(θ)ᵀ K_dw(θ))⁻¹ y + b, Eq. (11): a smoothing that reaches every pixel and amplifies nothing.

    Parameters: "stencil" θ [*kernel_size, features]; "bias".

    Attributes:
        features, kernel_size, use_bias, dtype, param_dtype, bias_init: as in every layer of this module.
        padding: "CIRCULAR", or "SYMMETRIC", with which opposite edges do not meet; see `lowcost.depthwise_resolvent`.
            With the others the inverse is not diagonal.
        h: time step. The Green's function has a radius of √(2h)·|Σ_j j θ_j| pixels if Σ_j θ_j = 0.
        reach: this radius before training, by `lowcost.nn.initializers.reaching_stencil`; 0 for `stable_stencil(h)`,
            whose radius is mostly below one pixel, for every h.
        kernel_init: initialiser of θ, in place of the two.

    Raises:
        TypeError, ValueError: as in `Depthwise`; ValueError also for h negative or not finite.
    """

    padding: Padding = "CIRCULAR"
    h: float = 1.0
    reach: float = 0.0
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., *grid, features] → the same shape."""
        if self.padding not in ("CIRCULAR", "SYMMETRIC"):
            problem = f"padding must be one of 'CIRCULAR', 'SYMMETRIC' here, got {self.padding!r}"
            raise ValueError(f"{problem}; use 'SYMMETRIC' if opposite edges must not meet")
        init = initializers.reaching_stencil(self.h, self.reach) if self.reach else initializers.stable_stencil(self.h)
        return self._apply(partial(depthwise_resolvent, h=self.h), inputs, self._stencil(self.kernel_init or init))
