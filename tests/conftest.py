"""Gives every test four virtual CPU devices and makes rank promotion an error."""

import gc
import os
import signal
from importlib.metadata import version

# Child processes inherit these variables. Most of the time is compilation, two thirds of it by the fusion emitters.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jaxlib").startswith("0.10."):  # a later XLA ends the process, because it does not know the flag
    # Each program is compiled in one piece: the tests occupy both cores, and splitting takes a tenth longer.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

os.environ["LOWCOST_MEASURE"] = "0"  # measured times would choose the methods and so the last bits of results

import jax
import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)  # machines are slow at times; main is always green
settings.load_profile("tests")
gc.set_threshold(50_000, 20, 50)  # tracing makes little garbage, and searching for it took a tenth of the time
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Assigns one worker to each file, and one to all of tests/faults, so that no fixture is made twice."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/faults" if nodeid.startswith("tests/faults/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture
def x64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def no_mesh_stays():
    """Asserts that the test leaves no mesh, which would shard and recompile the programs of later tests."""
    yield
    assert jax.sharding.get_abstract_mesh().empty


@pytest.fixture(autouse=True, scope="module")
def earlier_objects_are_frozen():
    """Hides earlier modules' objects from the garbage collector, which restoring a checkpoint runs every time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_reach_processes():
    """Handles SIGINT and SIGHUP, because child processes inherit it if nohup or a script ignores them."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items):
    """Starts with the files that take longest, so that no worker is left with one at the end."""
    first = ("tests/faults/", "tests/train/test_training.py")
    items.sort(key=lambda item: not item.nodeid.startswith(first))
