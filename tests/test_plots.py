"""The plots show the values that are passed."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import lowcost
from lowcost import analysis

mpl.use("Agg")
from lowcost import plots


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    mpl.pyplot.close("all")


STENCIL = jax.random.normal(jax.random.key(0), (3, 3, 5))
GRID = (8, 6)
SYMBOL = lowcost.symbol(STENCIL, GRID)


def canvas(ax):
    """Returns the values of the image."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)


@pytest.mark.parametrize(
    ("draw", "values", "tiles"),
    [
        (lambda: plots.stencils(STENCIL), STENCIL, (2, 3)),
        (lambda: plots.symbol(SYMBOL), jnp.fft.fftshift(lowcost.squared_modulus(SYMBOL), (0, 1)), (2, 3)),
    ],
    ids=["stencils", "symbol"],
)
def test_every_channel_is_drawn_once(draw, values, tiles):
    ax = draw()
    height, width, channels = values.shape
    gap = max(1, round(0.08 * max(height, width)))
    picture = canvas(ax)
    assert picture.shape == tuple(n * (m + gap) - gap for n, m in zip(tiles, (height, width), strict=True))
    for i in range(channels):
        top, left = i // tiles[1] * (height + gap), i % tiles[1] * (width + gap)
        np.testing.assert_array_equal(picture[top : top + height, left : left + width], values[..., i])
    assert np.isfinite(picture).sum() == values.size


@pytest.mark.parametrize("grid", [(16, 16), (64, 32), (9, 15)])
def test_zero_frequency_stands_in_the_middle(grid):
    """A blur responds to constants most, so the largest |λ|² is at frequency (0, 0)."""
    ax = plots.symbol(lowcost.symbol(jnp.ones((3, 3, 1)), grid))
    assert canvas(ax).shape == grid
    row, column = np.unravel_index(canvas(ax).argmax(), grid)
    left, right, bottom, top = ax.images[0].get_extent()
    assert left + (column + 0.5) / grid[1] * (right - left) == pytest.approx(0, abs=1e-9)
    assert top + (row + 0.5) / grid[0] * (bottom - top) == pytest.approx(0, abs=1e-9)


def test_spectra_share_an_axes():
    ax = plots.spectrum(SYMBOL, label="K")
    assert plots.spectrum(lowcost.squared_modulus(SYMBOL), ax=ax, label="KᵀK") is ax
    drawn = [line for line in ax.lines if line.get_label() in ("K", "KᵀK")]
    assert [len(line.get_xdata()) for line in drawn] == [SYMBOL.size, SYMBOL.size]
    np.testing.assert_array_equal(drawn[0].get_ydata(), np.asarray(SYMBOL).ravel().imag)
    assert len(ax.patches) == 1


@pytest.mark.parametrize("integrator", lowcost.time_stepping.INTEGRATORS)
def test_stability_map_draws_the_limit_where_there_is_one(integrator):
    """Only the explicit step has factors above 1 and the line |R| = 1, which passes through (limit, max|λ|²)."""
    ax = plots.stability_map(integrator, SYMBOL)
    factors = np.asarray(ax.collections[0].get_array())
    assert (factors.max() > 1 + 1e-6) == (integrator == "forward_euler") == (len(ax.collections) == 2)
    if integrator == "forward_euler":
        line = max(ax.collections[1].get_paths(), key=lambda path: len(path.vertices)).vertices
        largest, limit = float(lowcost.squared_modulus(SYMBOL).max()), float(analysis.max_stable_step(SYMBOL))
        assert line[line[:, 1].argmax()] == pytest.approx((limit, largest), rel=0.05)


def test_the_stability_of_an_integrator_of_ones_own():
    own = lowcost.time_stepping.INTEGRATORS["imex_euler"]
    ours, named = (plots.stability_map(x, SYMBOL) for x in (own, "imex_euler"))
    np.testing.assert_array_equal(*(ax.collections[0].get_array() for ax in (ours, named)))
    assert (ours.get_title(), named.get_title()) == ("integrator", "imex euler")


def test_green_function_keeps_its_centre():
    green = analysis.green_function(STENCIL, GRID, 1.0)
    ax = plots.green_function(green, channel=2)
    picture, (left, _, _, top) = canvas(ax), ax.images[0].get_extent()
    row, column = np.unravel_index(np.abs(picture).argmax(), GRID)
    assert left + column + 0.5 == 0 == top + row + 0.5
    np.testing.assert_allclose(picture, np.maximum(np.abs(green[..., 2]), picture.min()), rtol=1e-6)


def test_matrix_is_drawn_entry_by_entry():
    dense = analysis.operator_matrix(lambda y: lowcost.depthwise(STENCIL[:, 0], y), (4, 5))
    ax = plots.matrix(dense, block=5)
    np.testing.assert_array_equal(canvas(ax), dense)
    assert len(ax.lines) == 6  # between four blocks, both ways
    ax = plots.matrix(jnp.ones((16, 8)), block=4)
    assert (len(ax.lines), ax.get_xlim()) == (3 + 1, (-0.5, 7.5))


def test_signals_are_curves():
    λ = lowcost.symbol(STENCIL[:, 0], (12,))
    assert len(plots.symbol(λ).lines) == 5
    assert plots.green_function(analysis.green_function(STENCIL[:, 0], (12,), 1.0)).get_yscale() == "log"
    assert canvas(plots.stencils(STENCIL[:, 0])).shape[0] > 1


@pytest.mark.parametrize("shape", [(5, 3, 1), (9, 1, 4), (1, 1, 1)])
def test_mosaics_of_other_shapes_hold_no_more_than_needed(shape):
    picture = canvas(plots.stencils(jnp.ones(shape, jnp.bfloat16)))
    assert np.isfinite(picture).sum() == np.prod(shape)
    assert np.isfinite(picture).any(axis=0).mean() > 0.5


@pytest.mark.parametrize("draw", [plots.stencils, plots.symbol, plots.green_function])
def test_zeros_are_drawn_and_volumes_refused(draw):
    draw(jnp.zeros((4, 4, 2)))
    before = mpl.pyplot.get_fignums()
    with pytest.raises(ValueError, match="of a volume draw a slice"):
        draw(jnp.ones((3, 3, 3, 2)))
    assert mpl.pyplot.get_fignums() == before  # no empty figure is left


@pytest.mark.parametrize("draw", [plots.stencils, plots.green_function, plots.matrix])
def test_complex_numbers_are_refused(draw):
    with pytest.raises(TypeError, match="real floating point"):
        draw(jnp.ones((4, 4), complex))


def test_no_modes_are_refused():
    with pytest.raises(ValueError, match="other than 0"):
        plots.stability_map("imex_euler", jnp.zeros((4, 1)))
