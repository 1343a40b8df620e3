"""Programs called in this process set no mesh for the tests after them."""

import contextlib

import jax
import pytest


@pytest.fixture(autouse=True)
def no_mesh(monkeypatch):
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: contextlib.nullcontext())
