"""Tests faults that really happen to training runs: few of them in pytest, all of them by `make faults`.

`pytest tests/faults --full --faults-out OUT` writes one row per fault to OUT.jsonl and OUT.md.
"""

import os
import random
from pathlib import Path

import jax
import pytest
from faults.subject import Laboratory, Subject
from faults.table import ROW, Table


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--full", action="store_true", help="all faults, many of each kind (half an hour)")
    group.addoption("--faults-seed", type=int, default=0, help="seed of the random moments and places (default: 0)")
    group.addoption("--faults-out", type=Path, metavar="OUT", help="write the figures to OUT.jsonl and OUT.md")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: a fault that only `make faults` tries")
    if not is_full(config):
        return
    os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # compile as users' runs do
    for flag in "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1":
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").replace(flag, "")
    jax.config.update("jax_disable_most_optimizations", False)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("faults_out")))


def is_full(config):
    """Returns whether all faults are run; False if pytest, started for all tests, does not know the option."""
    return config.getoption("full", False)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("full") and not is_full(config):
            item.add_marker(pytest.mark.skip("smaller tests cover it; `make faults` runs it"))


@pytest.fixture(scope="session")
def lab(request, tmp_path_factory):
    directory, short = tmp_path_factory.mktemp("faults"), not is_full(request.config)
    subject = Subject(directory, *((6, ("--width", 32)) if short else (40,)))  # one block is traced and compiled sooner
    whole = directory / "whole"
    digest = subject.finish(whole)["digest"]
    return Laboratory(subject, whole, digest, random.Random(request.config.getoption("faults_seed", 0)), short)


@pytest.fixture
def record(record_property):
    """Records the row of a test for the table; the row is wrong if the test fails."""
    return lambda fault, figure: record_property(ROW, (fault, figure))


@pytest.fixture(autouse=True, scope="module")
def no_mesh():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "set_mesh", lambda mesh: None)
        yield
