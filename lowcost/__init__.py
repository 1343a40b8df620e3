"""Builds convolutional networks with few weights: exact spectral operators and reaction-diffusion steps in JAX.

The package offers the operators of *Low-cost Parameterizations of Deep Convolutional Neural Networks* as pure
functions, and `load` and `save` for trained networks. Its submodules are imported at their first use: `lowcost.nn`
builds networks, `lowcost.data` loads images, `lowcost.train` trains, `lowcost.deploy` exports; `analysis`, `convert`,
`cost` and `plots` examine the operators.
"""

from typing import TYPE_CHECKING

from lowcost.lazy import attributes

if TYPE_CHECKING:
    from lowcost import analysis, convert, cost, data, deploy, nn, train
    from lowcost import plots as plots  # not in __all__, because it needs an extra
    from lowcost.deploy.loading import load
    from lowcost.deploy.packaged import save
    from lowcost.operators.circulant import circulant, circulant_adjoint, circulant_diffusion, circulant_resolvent
    from lowcost.operators.depthwise import depthwise, depthwise_adjoint, depthwise_diffusion, depthwise_resolvent
    from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
    from lowcost.operators.linear_mix import linear_mix, linear_mix_adjoint
    from lowcost.operators.pointwise import pointwise, pointwise_adjoint
    from lowcost.spectral import apply_symbol, circulant_symbol, coupled_symbol, squared_modulus, symbol
    from lowcost.time_stepping import forward_euler, imex_euler, reaction_diffusion, spectral_step

__version__ = "0.2.0"

__all__ = ["apply_symbol", "circulant_symbol", "coupled_symbol", "squared_modulus", "symbol"]
__all__ += ["circulant", "circulant_adjoint", "circulant_diffusion", "circulant_resolvent"]
__all__ += ["depthwise", "depthwise_adjoint", "depthwise_diffusion", "depthwise_resolvent"]
__all__ += ["fully_coupled", "fully_coupled_adjoint", "linear_mix", "linear_mix_adjoint"]
__all__ += ["pointwise", "pointwise_adjoint"]
__all__ += ["analysis", "convert", "cost", "data", "deploy", "nn", "train"]
__all__ += ["load", "save"]
__all__ += ["forward_euler", "imex_euler", "reaction_diffusion", "spectral_step"]

if not TYPE_CHECKING:
    _OPERATORS = ("circulant", "depthwise", "fully_coupled", "linear_mix", "pointwise")
    _HOMES = ["spectral", "time_stepping", *(f"operators.{name}" for name in _OPERATORS)]
    _HOMES += ["deploy.loading", "deploy.packaged"]
    _SUBMODULES = ["analysis", "convert", "cost", "data", "deploy", "nn", "plots", "train"]
    __getattr__, __dir__ = attributes(__name__, __all__, _HOMES, _SUBMODULES)
