"""Programs called in this process set no mesh for the tests after them."""

import contextlib

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def no_mesh():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "set_mesh", lambda mesh: contextlib.nullcontext())
        yield
