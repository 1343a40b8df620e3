"""The cost of a network follows from the layers' operations: Table 2, and the sum of Table 1's formulas."""

import pytest

from lowcost import cost
from lowcost.nn import ARCHITECTURES, network, network_cost

COUNTED = {"resnet": (cost.fully_coupled, 2), "linear_mix": (cost.linear_mix, 2), "mobilenet": (cost.linear_mix, 1)}
"""The operators of a step and how many times it applies them; the others are rows of Table 1 themselves."""


def step(architecture, grid, c, **method):
    """Returns the cost of one step by the formulas of Table 1."""
    formula, times = COUNTED.get(architecture) or (getattr(cost, architecture), 1)
    channels = (c, c) if architecture == "resnet" else (c,)
    return times * [formula(grid, (3,) * len(grid), *channels, **method)]


@pytest.mark.parametrize("method", [None, "fft", "matmul", "direct"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_costs_what_its_layers_cost(architecture, method):
    """The cost is the sum over two blocks, written out (Section 4); a step with an inverse has no direct method."""
    net = network(architecture, (8, 16), 10, steps_per_block=3)
    if method == "direct" and "implicit" in architecture:
        with pytest.raises(ValueError, match="method must be one of 'fft', 'matmul' here, got 'direct'"):
            network_cost(net, (12, 16, 1), method=method)
        return
    options = {"method": method} if method else {}
    layers = [
        cost.fully_coupled((12, 16), (5, 5), 1, 8),
        *3 * step(architecture, (12, 16), 8, **options),
        cost.depthwise((12, 16), (3, 3), 8),
        *3 * step(architecture, (6, 8), 16, **options),
        cost.depthwise((6, 8), (3, 3), 16),
        cost.pointwise((), 32, 10),
        cost.Cost(10, 0),
    ]
    assert network_cost(net, (12, 16, 1), method=method) == cost.total(layers)


@pytest.mark.parametrize("m", [2, 4])
def test_an_even_stencil_costs_its_own_points(m):
    """Its adjoint has a stencil with zeros beside these points, which count neither in K nor in Kᵀ."""
    layers = [cost.fully_coupled((8, 8), (5, 5), 1, 4), cost.depthwise((8, 8), (m, m), 4), cost.pointwise((), 8, 3)]
    steps = {"resnet": cost.fully_coupled((8, 8), (m, m), 4, 4), "linear_mix": cost.linear_mix((8, 8), (m, m), 4)}
    for architecture, operator in steps.items():
        net = network(architecture, (4,), 3, kernel_size=m, steps_per_block=1)
        assert network_cost(net, (8, 8, 1)) == cost.total([*layers, operator, operator, cost.Cost(3, 0)])


def test_a_step_costs_the_same_for_every_time_step():
    for architecture in ("resnet", "linear_mix"):
        nets = [network(architecture, (4,), 3, h=h, steps_per_block=1) for h in (0.0, 1.0)]
        assert network_cost(nets[0], (8, 8, 1)) == network_cost(nets[1], (8, 8, 1))


def test_pixels_count_in_proportion():
    """Twice the side needs four times the direct multiply-adds, except the classifier's, and no more weights."""
    net = network("resnet", "A", 10)
    small, large = (network_cost(net, (n, n, 3)) for n in (32, 64))
    assert large.multiply_adds - 2560 == 4 * (small.multiply_adds - 2560)
    assert large.weights == small.weights


def test_bad_images_and_methods_are_refused():
    with pytest.raises(ValueError, match=r"at least 9 points, .* got shape \[1, 8, 32, 3\]"):
        network_cost(network("resnet", "A", 10), (8, 32, 3))
    with pytest.raises(ValueError, match="method must be one of 'fft', 'matmul', 'direct' here, got 'auto'"):
        network_cost(network("resnet", "A", 10), (32, 32, 3), method="auto")
