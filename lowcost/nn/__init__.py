"""Builds networks of the paper as Flax (linen) modules."""

from lowcost.batching import infer
from lowcost.nn import initializers, norm_budget
from lowcost.nn.architectures import ARCHITECTURES, Architecture, network
from lowcost.nn.costs import network_cost
from lowcost.nn.layers import Circulant, Depthwise, ImplicitDiffusion, LinearMix
from lowcost.nn.networks import Network, Width, block_channels
from lowcost.nn.normalization import Normalize
from lowcost.nn.reaction_diffusion import (
    CirculantRDStep,
    ExplicitRDStep,
    ImplicitCirculantRDStep,
    ImplicitRDStep,
    Reaction,
)
from lowcost.nn.stability import StabilityReport, certified_radii, stability_report
from lowcost.nn.steps import LinearMixStep, MobileNetStep, ResNetStep
from lowcost.nn.structure import bound_layers

__all__ = ["ARCHITECTURES", "Architecture", "Network", "Width", "block_channels", "bound_layers", "network"]
__all__ += ["CirculantRDStep", "ExplicitRDStep", "ImplicitCirculantRDStep", "ImplicitRDStep", "LinearMixStep"]
__all__ += ["MobileNetStep", "Normalize", "Reaction", "ResNetStep"]
__all__ += ["Circulant", "Depthwise", "ImplicitDiffusion", "LinearMix", "initializers", "norm_budget"]
__all__ += ["StabilityReport", "certified_radii", "infer", "network_cost", "stability_report"]
