"""Tests method="auto" on this CPU: what a run measures, stores, records and reuses."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from faults.subject import write_images

from experiments.common import runs, training, tuning
from experiments.common.config import TrainConfig
from lowcost import methods
from lowcost.deploy.loading import configuration

POINT = methods.Point("depthwise", (16, 16), (3, 3), 64)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Replaces measuring, so that the slowest method of the table is the fastest; yields the measured points."""
    points = []

    def measure(point, ways):
        assert len(ways) > 1
        points.append(point)
        return 1, {way: 1 / methods.known_seconds(point, "cpu")[way] for way in ways}

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.delenv("LOWCOST_MEASURE")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield points
    jax.config.update("jax_compilation_cache_dir", before)


def by_table(point):
    return {str(point): dict(methods.choices("auto", *point))["cpu"]}


def test_times_are_stored_for_later_runs(measured, tmp_path):
    """They are measured again if the file is damaged or of another version, or if no file is kept."""
    chosen = tuning.chosen({POINT})
    assert chosen.keys() == {str(POINT)}
    assert chosen != by_table(POINT)
    assert tuning.chosen({POINT}) == chosen
    assert measured == [POINT]
    [path] = tmp_path.iterdir()
    whole = path.read_text()
    assert json.loads(whole)["machine"].endswith(f"jax {jax.__version__}, lowcost {tuning.lowcost.__version__}")
    for content in (
        "",
        "[]",
        '{"seconds": {"a": 1}}',
        "[" * 100_000,
        whole.replace("depthwise", "other"),
        whole.replace(chosen[str(POINT)], "x"),
    ):
        path.write_text(content)
        assert tuning.chosen({POINT}) == chosen
    assert measured == [POINT] * 7
    jax.config.update("jax_compilation_cache_dir", None)
    assert tuning.chosen({POINT}) == chosen
    assert measured == [POINT] * 8


def test_what_is_clear_is_not_measured(measured):
    """The matrix product of small grids is more than twice as fast as the FFT."""
    assert tuning.chosen({methods.Point("real", (8, 8), (8, 8), 128)}) == {"real 8x8 8x8 128": "matmul"}
    assert not measured


@pytest.mark.parametrize(
    ("name", "value"), [("LOWCOST_CHIP", "v5e"), ("LOWCOST_MEASURE", "0"), ("LOWCOST_METHODS", "")]
)
def test_a_named_table_chooses(measured, monkeypatch, tmp_path, name, value):
    if name == "LOWCOST_METHODS":
        value = str(shutil.copy(methods.__file__.replace("methods.py", "methods_cpu.json"), tmp_path / "table"))
    monkeypatch.setenv(name, value)
    assert tuning.chosen({POINT}) == by_table(POINT)
    assert not measured


@pytest.mark.parametrize("operator", ["real", "circulant_resolvent", "linear_mix", "coupled"])
def test_measuring(operator):
    """Measures real times on a grid that is not square."""
    point = methods.Point(operator, (4, 6), (3, 1), 3)
    ways = methods.METHODS_OF[operator][-2:]
    batch, seconds = tuning.measure(point, ways, features=8 * 24 * 3, rounds=1)
    assert batch % jax.local_device_count() == 0
    assert set(seconds) == set(ways)
    assert all(time > 0 for time in seconds.values())


def test_a_run_keeps_its_methods(measured, tmp_path, monkeypatch):
    """Its programs use the methods in config.json, even after a change of the table and when the run is only read."""
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    config = TrainConfig("folder", epochs=1, batch_size=8, steps_per_block=1, workdir=workdir, data_dir=images)
    ready = training._prepare(dataclasses.replace(config, dry_run=True), None)
    assert not ready.methods
    assert not measured
    first = training._prepare(config, None)
    assert measured
    assert first.methods.keys() >= {"real 16x16 16x16 32", "depthwise 8x8 3x3 64"}
    assert [tuning.chosen({point}) == by_table(point) for point in measured] == [False] * len(measured)
    recorded = dict.fromkeys(first.methods, "fft")
    with training.contextlib.ExitStack() as stack:
        first.methods.update(recorded)
        training._claim(first, stack)
    assert configuration(workdir)["methods"] == recorded
    measured.clear()
    monkeypatch.setenv("LOWCOST_CHIP", "h100")
    again = training._prepare(config, None)
    assert again.methods == recorded
    assert not measured
    monkeypatch.setattr(runs, "newest", lambda *arguments, **options: SimpleNamespace(state=None))  # no checkpoint yet
    assert runs.reopen(workdir, None)[0].methods == recorded
    variables = again.abstract_state().variables
    pixels = jnp.zeros((8, 16, 16, 3), jnp.uint8)
    monkeypatch.delenv("LOWCOST_CHIP")
    assert "fft" in again.apply.lower(variables, pixels).as_text()
    assert "fft" not in ready.apply.lower(variables, pixels).as_text()


def test_a_run_that_has_recorded_no_methods_uses_the_table(measured, tmp_path):
    """Runs of older versions have recorded none, and a resumed run must not change its bits."""
    images, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    config = TrainConfig("folder", epochs=1, batch_size=8, steps_per_block=1, workdir=workdir, data_dir=images)
    ready = runs.prepare(config)
    with training.contextlib.ExitStack() as stack:
        training._claim(ready, stack)
    path = workdir / "config.json"
    path.write_text(json.dumps({name: x for name, x in configuration(workdir).items() if name != "methods"}))
    assert training._prepare(config, None).methods == {}
    assert not measured
    with training.contextlib.ExitStack() as stack:
        training._claim(ready, stack)
