"""Provides small networks with weights and statistics as if trained."""

import pytest
from weights import as_if_trained

from lowcost.nn import network


@pytest.fixture(scope="session")
def trained():
    """Returns (architecture, image_shape, **options) → network, variables; nothing is compiled."""

    def make(architecture, image_shape, **options):
        options = {"width": (4, 8), "steps_per_block": 1, "h": 1.0 if architecture == "mobilenet" else 0.8} | options
        net = network(architecture, options.pop("width"), 5, **options)
        return net, as_if_trained(net, image_shape)

    return make
