"""Networks of the paper as Flax (linen) modules."""

from lowcost.nn.network import ARCHITECTURES, Network, network
from lowcost.nn.stability import StabilityReport, stability_report
from lowcost.nn.steps import ExplicitRDStep, ImplicitRDStep

__all__ = [
    "ARCHITECTURES",
    "ExplicitRDStep",
    "ImplicitRDStep",
    "Network",
    "StabilityReport",
    "network",
    "stability_report",
]
