"""method="auto": the fastest measured method, or a rule."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
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
        methods._measured.cache_clear()

    yield write
    methods._measured.cache_clear()


def row(operator="diffusion", n=32, m=3, channels=32, dims=2, **seconds):
    return {"operator": operator, "dims": dims, "n": n, "m": m, "channels": channels, "seconds": seconds}


def test_the_fastest_at_the_nearest_point(table):
    """Nearest in octaves of grid, stencil and channels, within as many dimensions."""
    table(row(n=8, fft=1.0, matmul=0.5), row(n=64, fft=0.5, matmul=1.0), row(n=8, dims=3, fft=0.5, matmul=1.0))
    assert methods.choose("auto", "real", (16, 16), WINDOW, 32) == "matmul"
    assert methods.choose("auto", "real", (48, 48), WINDOW, 32) == "fft"
    assert methods.choose("auto", "real", (8, 8, 8), WINDOW, 32) == "fft"


def test_far_from_the_table_its_seconds_are_scaled():
    """Seconds grow with operations: the FFT wins for long stencils, the stencil itself for many coupled channels."""
    for operator in ("depthwise", "diffusion", "circulant", "coupled"):
        assert methods.choose("auto", operator, (16_384,), (2049,), 3) == "fft"
        assert methods.choose("auto", operator, (16, 16, 16), (7, 7, 7), 8) == "fft"
    assert methods.choose("auto", "depthwise", (16_384,), (3,), 3) == "direct"
    assert methods.choose("auto", "coupled", GRID, WINDOW, 1024) == "direct"


def test_only_methods_that_the_operator_has(table):
    """A filter has no stencil to apply directly, although its times are those of depth-wise convolutions."""
    table(row("depthwise", fft=2.0, matmul=3.0, direct=1.0))
    assert methods.choose("auto", "depthwise", GRID, WINDOW, 32) == "direct"
    assert methods.choose("auto", "complex", GRID, WINDOW, 32) == "fft"


def test_what_the_caller_names_is_taken(table):
    """The table is for "auto" only; a method that the operator does not have is an error."""
    table(row(fft=1.0, matmul=2.0))
    assert methods.choose("matmul", "real", GRID, WINDOW, 32) == "matmul"
    with pytest.raises(ValueError, match="method must be one of 'auto', 'fft', 'matmul' here, got 'direct'"):
        methods.choose("direct", "real", GRID, WINDOW, 32)


def test_operators_read_it(table):
    """The operators use the table: their programs have an FFT, or none."""
    for fft, matmul in ((1.0, 2.0), (2.0, 1.0)):
        table(row("depthwise", n=8, channels=2, fft=fft, matmul=matmul, direct=3.0))
        jax.clear_caches()
        program = str(jax.make_jaxpr(lowcost.depthwise)(jnp.ones((3, 3, 2)), jnp.ones((2, 8, 8, 2))))
        assert ("fft" in program) == (fft < matmul)


def test_a_table_that_cannot_be_read(tmp_path, monkeypatch):
    """The error names the variable and the file."""
    for content in ("{", "[]", '{"operator": "real"}', None):
        path = tmp_path / "broken.json"
        path.write_text(content) if content else path.unlink()
        monkeypatch.setenv("LOWCOST_METHODS", str(path))
        methods._measured.cache_clear()
        with pytest.raises(ValueError, match=r"LOWCOST_METHODS=.*broken\.json must be a table"):
            methods.choose("auto", "real", GRID, WINDOW, 32)
    monkeypatch.delenv("LOWCOST_METHODS")
    methods._measured.cache_clear()


@pytest.mark.parametrize(
    ("operator", "n", "m", "channels", "expected"),
    [
        ("depthwise", 32, 3, 32, "direct"),
        ("depthwise", 32, 7, 32, "matmul"),
        ("depthwise", 128, 7, 32, "fft"),
        ("circulant", 32, 3, 64, "direct"),
        ("circulant", 32, 3, 128, "matmul"),
        ("coupled", 32, 11, 128, "direct"),
        ("real", 64, 64, 32, "matmul"),
        ("real", 65, 65, 32, "fft"),
    ],
)
def test_the_rule_without_measurements(operator, n, m, channels, expected, monkeypatch):
    """On accelerators: short stencils directly, small grids by matrix product, the rest by FFT."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert methods.choose("auto", operator, (n, n), (m, m), channels) == expected


def test_the_table_for_cpus():
    """The table has every operator that is measured, in one to three dimensions.

    Each row has a time for each method. Only the matrix product may be missing, if it was far slower on a smaller grid.
    """
    rows = [json.loads(line) for line in Path(methods.__file__).with_name("methods_cpu.json").read_text().splitlines()]
    measured = {operator for operator in methods.WAYS if operator not in methods._MEASURED_AS}
    assert {row["operator"] for row in rows} == measured
    assert {row["dims"] for row in rows} == {1, 2, 3}
    for row in rows:
        assert set(row["seconds"]) | {"matmul"} == set(methods.WAYS[row["operator"]])
        assert all(seconds > 0 for seconds in row["seconds"].values())
