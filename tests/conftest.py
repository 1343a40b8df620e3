"""Four virtual CPU devices for every test, and no silent broadcasting of ranks."""

import gc
import os

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # in the processes that tests start too: most is compiling

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def no_mesh_stays():
    """A mesh that a test leaves behind would shard, and compile anew, what later tests do."""
    yield
    assert jax.sharding.get_abstract_mesh().empty


@pytest.fixture(autouse=True, scope="module")
def what_is_there_stays():
    """What modules before have compiled is not searched by every collection that restoring a checkpoint asks for."""
    gc.freeze()
