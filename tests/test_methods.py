"""Tests method="auto", which takes the fastest measured method or follows a rule."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from lowcost import methods

GRID, WINDOW = (32, 32), (3, 3)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Returns a function that makes the given rows the table in use."""

    def write(*rows):
        path = tmp_path / "methods.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setenv("LOWCOST_METHODS", str(path))
        methods._table.cache_clear()

    yield write
    methods._table.cache_clear()


def choose(method, operator, grid, window, channels, platform="cpu"):
    return dict(methods.choices(method, operator, grid, window, channels))[platform]


def row(operator="diffusion", n=32, m=3, channels=32, dims=2, **seconds):
    return {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels, "batch": 1, "seconds": seconds}


def test_the_fastest_at_the_nearest_point(table):
    """Distances are in octaves of grid, stencil and channels, among points with as many dimensions."""
    table(row(n=8, fft=1.0, matmul=0.5), row(n=64, fft=0.5, matmul=1.0), row(n=8, dims=3, fft=0.5, matmul=1.0))
    assert choose("auto", "real", (16, 16), WINDOW, 32) == "matmul"
    assert choose("auto", "real", (48, 48), WINDOW, 32) == "fft"
    assert choose("auto", "real", (8, 8, 8), WINDOW, 32) == "fft"


def test_far_from_the_table_its_seconds_are_scaled():
    """Seconds grow with operations: long stencils are transformed, many coupled channels are not."""
    for operator in ("depthwise", "diffusion", "circulant", "coupled"):
        assert choose("auto", operator, (16_384,), (2049,), 3) == "fft"
        assert choose("auto", operator, (16, 16, 16), (7, 7, 7), 8) != "direct"
    assert choose("auto", "depthwise", (16_384,), (3,), 3) == "direct"
    assert choose("auto", "coupled", GRID, WINDOW, 1024) == "direct"


def test_no_matrix_for_a_long_axis(table):
    """The FFT replaces it where it was fastest, also where its time is not known; otherwise another method stays."""
    long = {"grid": (16_384,), "window": (2049,), "channels": 32}
    for seconds, best in (({"matmul": 1e-9, "direct": 1.0}, "fft"), ({"matmul": 1.0, "fft": 1e-9}, "fft")):
        table(row("circulant", **seconds))
        assert choose("auto", "circulant", *long.values()) == best
        assert "matmul" not in methods.known_seconds(methods.Point("circulant", *long.values()), "cpu")


def test_one_convolution_for_linear_mix_where_it_is_known_to_be_faster(monkeypatch):
    """It is taken on accelerators at the paper's widths, but not with many channels, nor at these sizes on CPUs."""
    for n, channels in ((32, 32), (16, 64), (8, 128)):
        chosen = [choose("auto", "linear_mix", (n, n), WINDOW, channels, chip) for chip in ("cpu", "tpu", "default")]
        assert chosen == ["direct", "coupled", "coupled"]
    for chip in ("tpu", "default"):
        assert choose("auto", "linear_mix", (16, 16), WINDOW, 512, chip) == "direct"
    monkeypatch.setenv("LOWCOST_CHIP", "v5e")
    assert choose("auto", "linear_mix", GRID, WINDOW, 32, "cpu") == "coupled"


def test_only_methods_that_the_operator_has(table):
    """A filter has no stencil to apply directly, although its times are those of depth-wise convolutions."""
    table(row("depthwise", fft=2.0, matmul=3.0, direct=1.0))
    assert choose("auto", "depthwise", GRID, WINDOW, 32) == "direct"
    assert choose("auto", "complex", GRID, WINDOW, 32) == "fft"


def test_what_the_caller_names_is_taken(table):
    """The table is for "auto" only; a method that the operator does not have is an error."""
    table(row(fft=1.0, matmul=2.0))
    assert choose("matmul", "real", GRID, WINDOW, 32, "default") == "matmul"
    with pytest.raises(ValueError, match="method must be one of 'auto', 'fft', 'matmul' here, got 'direct'"):
        choose("direct", "real", GRID, WINDOW, 32)


def test_operators_read_it(table):
    """The operators use the table: their programs have an FFT, or none."""
    for fft, matmul in ((1.0, 2.0), (2.0, 1.0)):
        table(row("depthwise", n=8, channels=2, fft=fft, matmul=matmul, direct=3.0))
        fresh = jax.make_jaxpr(lambda *arguments: lowcost.depthwise(*arguments))  # another function is traced anew
        program = str(fresh(jnp.ones((3, 3, 2)), jnp.ones((2, 8, 8, 2))))
        assert ("fft" in program) == (fft < matmul)


def test_a_decision_replaces_the_table_for_cpus():
    """A decision applies while a function is traced, and only to its own points."""
    asked = set()
    with methods.decided_by(asked.add):
        jax.eval_shape(lowcost.depthwise_resolvent, jnp.ones((3, 3, 2)), jnp.ones((2, 8, 8, 2)), 1.0)
    assert asked == {methods.Point("real", (8, 8), (8, 8), 2)}
    table = methods.choices("auto", "depthwise", GRID, WINDOW, 32)
    point = methods.Point("depthwise", GRID, WINDOW, 32)
    assert str(point) == "depthwise 32x32 3x3 32"
    with methods.decided_by({point: "fft"}.get):
        assert dict(methods.choices("auto", *point)) == dict(table) | {"cpu": "fft"}
        assert methods.choices("matmul", *point) == (("default", "matmul"),)
        assert choose("auto", "depthwise", GRID, WINDOW, 16) == "direct"
    assert methods.choices("auto", *point) == table
    with (
        methods.decided_by({point: "coupled"}.get),
        pytest.raises(ValueError, match="the method of depthwise 32x32 3x3 32"),
    ):
        methods.choices("auto", *point)


def test_a_table_that_cannot_be_read(tmp_path, monkeypatch):
    """The error names the variable and the file."""
    for content in ("{", "[]", '{"operator": "real"}', None):
        path = tmp_path / "broken.json"
        path.write_text(content) if content else path.unlink()
        monkeypatch.setenv("LOWCOST_METHODS", str(path))
        methods._table.cache_clear()
        with pytest.raises(ValueError, match=r"LOWCOST_METHODS=.*broken\.json must be a table"):
            choose("auto", "real", GRID, WINDOW, 32)
    monkeypatch.delenv("LOWCOST_METHODS")
    methods._table.cache_clear()


def lowered(function, *arrays, platform):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_is_chosen_when_a_program_is_lowered(monkeypatch):
    """One function, lowered for each platform, uses the method of the platform's table for value and gradients."""
    fastest = {"cpu": "direct", "v5e": "fft", "h100": "matmul"}
    ways = methods.METHODS_OF["depthwise"]

    def table(path):
        chip = path.rpartition("_")[2].removesuffix(".json")
        return [row("depthwise", **{way: 1.0 if way == fastest[chip] else 2.0 for way in ways})]

    monkeypatch.setattr(methods, "_table", table)
    stencil, y = jnp.ones((3, 3, 2)), jnp.ones((2, 8, 8, 2))

    def gradients(stencil, y):
        return jax.grad(lambda *both: (lowcost.depthwise(*both) ** 2).sum(), (0, 1))(stencil, y)

    programs = {platform: lowered(gradients, stencil, y, platform=platform) for platform in ("cpu", "tpu", "cuda")}
    assert [platform for platform, text in programs.items() if "stablehlo.fft" in text] == ["tpu"]
    assert "stablehlo.while" in programs["cpu"]  # image by image
    assert "stablehlo.while" not in programs["tpu"] + programs["cuda"]
    assert "stablehlo.dot_general" in programs["cuda"]
    np.testing.assert_allclose(gradients(stencil, y)[1], 2 * 81 * jnp.ones(y.shape), rtol=1e-5)  # eager, without a jit


@pytest.mark.parametrize("operator", ["depthwise", "fully_coupled", "circulant_diffusion"])
def test_accelerators_get_convolutions_and_no_loops(operator):
    """method="direct" is XLA's convolution on accelerators, and its gradients are convolutions too."""
    stencil, y = jnp.ones((3, 3, 4, 4) if operator == "fully_coupled" else (3, 3, 4)), jnp.ones((2, 8, 8, 4))

    def gradients(stencil, y):
        operate = getattr(lowcost, operator)
        return jax.grad(lambda *both: (operate(*both, method="direct") ** 2).sum(), (0, 1))(stencil, y)

    for platform in ("tpu", "cuda"):
        text = lowered(gradients, stencil, y, platform=platform)
        assert text.count("stablehlo.convolution") >= 3
        assert "stablehlo.while" not in text
    assert "stablehlo.convolution" not in lowered(gradients, stencil, y, platform="cpu")


def test_the_chip_can_be_named(monkeypatch):
    """LOWCOST_CHIP chooses the table of that chip on every platform."""
    seen = set()
    monkeypatch.setattr(methods, "_table", lambda path: seen.add(path) or [row("depthwise", fft=1.0)])
    monkeypatch.setenv("LOWCOST_CHIP", "h100")
    assert choose("auto", "depthwise", GRID, WINDOW, 32) == "fft"
    assert {Path(path).name for path in seen} == {"methods_h100.json"}
    monkeypatch.setenv("LOWCOST_CHIP", "v7")
    with pytest.raises(ValueError, match=r"LOWCOST_CHIP must be one of 'cpu', 'v5e'.*got 'v7'"):
        choose("auto", "depthwise", GRID, WINDOW, 32)


@pytest.mark.parametrize("chip", [chip for chip in methods.CHIPS.values() if chip != "cpu"])
def test_the_tables_for_accelerators(chip):
    """Every operator that is measured itself has rows, with its own methods and the origin of the figures."""
    rows = [
        json.loads(line) for line in Path(methods.__file__).with_name(f"methods_{chip}.json").read_text().splitlines()
    ]
    assert {row["operator"] for row in rows} - {"linear_mix"} == methods.METHODS_OF.keys() - methods._MEASURED_AS.keys()
    for line in rows:
        assert set(line["seconds"]) <= set(methods.METHODS_OF[line["operator"]])
        assert all(seconds > 0 for seconds in line["seconds"].values())
        assert line["origin"] == f"estimated by XLA for {chip}"


def test_every_platform_has_a_method_for_every_filter():
    """A long axis gets no matrix, which would need more memory than the features; a resolvent is never "direct"."""
    for platform in methods.CHIPS:
        assert choose("auto", "real", (16_384,), (16_384,), 3, platform) == "fft"
        assert choose("auto", "circulant_resolvent", GRID, GRID, 32, platform) in methods.SPECTRAL


def test_the_table_for_cpus():
    """The table has every operator that is measured, in one to three dimensions.

    Each row has a time for each method. Only the matrix product may be missing, if it was far slower on a smaller grid.
    """
    rows = [json.loads(line) for line in Path(methods.__file__).with_name("methods_cpu.json").read_text().splitlines()]
    measured = {operator for operator in methods.METHODS_OF if operator not in methods._MEASURED_AS}
    assert {row["operator"] for row in rows} == measured | {"linear_mix"}
    assert {row["dims"] for row in rows} == {1, 2, 3}
    for row in rows:
        assert set(row["seconds"]) | {"matmul"} == set(methods.METHODS_OF[row["operator"]])
        assert all(seconds > 0 for seconds in row["seconds"].values())


def test_accelerators_convolve_bfloat16_as_it_is():
    """Features in float32 would take twice the bytes; XLA sums the products in float32."""
    stencil, y = jnp.ones((3, 3, 4, 4), jnp.bfloat16), jnp.ones((2, 8, 8, 4), jnp.bfloat16)
    gradients = jax.grad(lambda stencil, y: lowcost.fully_coupled(stencil, y).astype(jnp.float32).sum(), (0, 1))
    text = lowered(gradients, stencil, y, platform="tpu")
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 2
    assert not [line for line in convolutions if "xf32" in line]
