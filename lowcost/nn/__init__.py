"""Networks of the paper as Flax (linen) modules."""

from lowcost.nn.network import ARCHITECTURES, WIDTHS, Network, network
from lowcost.nn.steps import ExplicitRDStep, ImplicitRDStep

__all__ = ["ARCHITECTURES", "WIDTHS", "ExplicitRDStep", "ImplicitRDStep", "Network", "network"]
