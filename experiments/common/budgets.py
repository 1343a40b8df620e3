"""Applies the norm budget of a run, --norm-budget."""

from collections.abc import Sequence

from experiments.common.config import TrainConfig
from lowcost.nn import Network
from lowcost.nn.norm_budget import Projection, projection


def projection_of(config: TrainConfig, net: Network, image_shape: Sequence[int]) -> Projection | None:
    """Returns what keeps the weights of a run within its budget, or None if it has none.

    Raises:
        ValueError: the network cannot keep this budget.
    """
    if config.norm_budget is None:
        return None
    try:
        return projection(net, image_shape, config.norm_budget)
    except ValueError as error:
        prefix = "--norm-" if str(error).startswith("budget") else ""
        raise ValueError(f"{prefix}{error}") from None
