"""Tests how many devices a CPU becomes."""

from types import SimpleNamespace

import pytest

from lowcost.train import mesh


@pytest.mark.parametrize(
    ("cores", "batch_size", "images_per_core", "expected"),
    [(4, 96, 8, 4), (4, 9, 8, 1), (2, 3, 1, 1), (4, 6, 1, 3), (8, 12, 1, 6), (3, 2, 1, 2)],
)
def test_cores_become_devices_that_divide_the_batch(cores, batch_size, images_per_core, expected, monkeypatch):
    """Each device has at least the stated number of images; `figure1` also takes batches of few images."""
    chosen = {}
    config = SimpleNamespace(jax_num_cpu_devices=-1, update=chosen.__setitem__)
    monkeypatch.setattr(mesh, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(mesh.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    mesh.use_every_core(batch_size, images_per_core)
    assert chosen == {"jax_num_cpu_devices": expected}
