"""Programs called in this process set no mesh for the tests after them."""

import signal

import jax
import pytest


@pytest.fixture(autouse=True)
def no_mesh(monkeypatch):
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: None)


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Also where the tests themselves run in the background with SIGINT ignored, which programs would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
