"""Convolutional networks with few weights: exact spectral operators and reaction-diffusion steps in JAX.

The operators of *Low-cost Parameterizations of Deep Convolutional Neural Networks* as pure functions. `lowcost.nn`
makes networks of them, `lowcost.data` and `lowcost.train` bring pictures and training.
"""

from typing import TYPE_CHECKING

from lowcost.lazy import attributes

if TYPE_CHECKING:
    from lowcost import analysis, convert, cost
    from lowcost.operators.circulant import (
        circulant,
        circulant_adjoint,
        circulant_diffusion,
        circulant_resolvent,
    )
    from lowcost.operators.depthwise import depthwise, depthwise_adjoint, depthwise_diffusion, depthwise_resolvent
    from lowcost.operators.fully_coupled import fully_coupled, fully_coupled_adjoint
    from lowcost.operators.linear_mix import linear_mix, linear_mix_adjoint
    from lowcost.operators.pointwise import pointwise, pointwise_adjoint
    from lowcost.spectral import apply_symbol, circulant_symbol, coupled_symbol, squared_modulus, symbol
    from lowcost.time_stepping import forward_euler, imex_euler, reaction_diffusion, spectral_step

__version__ = "0.1.0"

__all__ = [
    "analysis",
    "apply_symbol",
    "circulant",
    "circulant_adjoint",
    "circulant_diffusion",
    "circulant_resolvent",
    "circulant_symbol",
    "convert",
    "cost",
    "coupled_symbol",
    "depthwise",
    "depthwise_adjoint",
    "depthwise_diffusion",
    "depthwise_resolvent",
    "forward_euler",
    "fully_coupled",
    "fully_coupled_adjoint",
    "imex_euler",
    "linear_mix",
    "linear_mix_adjoint",
    "pointwise",
    "pointwise_adjoint",
    "reaction_diffusion",
    "spectral_step",
    "squared_modulus",
    "symbol",
]

if not TYPE_CHECKING:
    _OPERATORS = ("circulant", "depthwise", "fully_coupled", "linear_mix", "pointwise")
    _HOMES = [*("analysis", "convert", "cost", "spectral", "time_stepping"), *(f"operators.{x}" for x in _OPERATORS)]
    __getattr__, __dir__ = attributes(__name__, __all__, _HOMES)
