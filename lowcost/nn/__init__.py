"""Networks of the paper as Flax (linen) modules."""

from lowcost.nn import initializers
from lowcost.nn.layers import Circulant, Depthwise, ImplicitDiffusion, LinearMix
from lowcost.nn.networks import ARCHITECTURES, Network, bound_layers, network
from lowcost.nn.stability import StabilityReport, stability_report
from lowcost.nn.steps import (
    CirculantRDStep,
    ExplicitRDStep,
    ImplicitCirculantRDStep,
    ImplicitRDStep,
    LinearMixStep,
    MobileNetStep,
    ResNetStep,
)

__all__ = [
    "ARCHITECTURES",
    "Circulant",
    "CirculantRDStep",
    "Depthwise",
    "ExplicitRDStep",
    "ImplicitCirculantRDStep",
    "ImplicitDiffusion",
    "ImplicitRDStep",
    "LinearMix",
    "LinearMixStep",
    "MobileNetStep",
    "Network",
    "ResNetStep",
    "StabilityReport",
    "bound_layers",
    "initializers",
    "network",
    "stability_report",
]
