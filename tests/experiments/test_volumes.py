"""Tests the patches of the volume: classes, slabs and random changes; and the program in small."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments import volumes
from experiments.common import brain
from experiments.common.files import read_rows

SMALL = volumes.Config(
    architectures=("explicit_rd", "resnet"),
    width=(2, 4),
    steps_per_block=1,
    patches=10,
    epochs=1,
    batch_size=20,
    seeds=2,
)


def slices(start):
    return tuple(slice(a, a + volumes.SIDE) for a in start)


def test_the_slabs_share_no_voxel():
    """A gap as large as a patch separates each slab from the next one."""
    slabs = sorted((*brain.TRAINING, *brain.TEST))
    assert all(after[0] - before[1] >= volumes.SIDE for before, after in itertools.pairwise(slabs))
    assert {*brain.VALIDATION} < {*brain.TRAINING}


def test_patches_lie_within_their_slabs(monkeypatch):
    """Each voxel of this image states its own position."""
    monkeypatch.setattr(brain, "GAIN", 0)
    monkeypatch.setattr(brain, "OFFSET", 0)
    monkeypatch.setattr(brain, "NOISE", 0)
    shape, slabs = (12, 60, 10), ((3, 14), (30, 38))
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    labels = np.random.default_rng(0).integers(-1, 3, [n - volumes.SIDE + 1 for n in shape])
    split = volumes.sample(0, image, labels, slabs, 5)
    assert np.bincount(split.labels).tolist() == [5, 5, 5]
    starts = set()
    for patch, label in zip(split.images[..., 0], split.labels, strict=True):
        start = np.unravel_index(int(patch[0, 0, 0]), shape)
        np.testing.assert_array_equal(patch, image[slices(start)])
        assert any(low <= start[1] and start[1] + volumes.SIDE <= high for low, high in slabs)
        assert labels[start] == label
        starts.add(start)
    assert len(starts) == 15


def test_gain_offset_and_noise_are_those_of_a_patch():
    """They are reproducible; only the noise differs from voxel to voxel."""
    labels = np.repeat(np.arange(3), 400)[:, None, None] * np.ones((1, 1, 1), int)
    flat = np.ones((len(labels) + volumes.SIDE - 1, volumes.SIDE, volumes.SIDE), np.float32)
    once, again = (volumes.sample(seed, flat, labels, ((0, volumes.SIDE),), 300) for seed in (7, 7))
    np.testing.assert_array_equal(once.images, again.images)
    means, deviations = once.images.mean((1, 2, 3, 4)), once.images.std((1, 2, 3, 4))
    assert np.allclose(deviations, brain.NOISE, rtol=0.2)
    expected = np.exp(brain.GAIN**2 / 2)
    variance = expected**2 * (np.exp(brain.GAIN**2) - 1) + brain.OFFSET**2
    assert means.mean() == pytest.approx(expected, abs=0.05)
    assert means.var() == pytest.approx(variance, rel=0.2)


def test_the_label_is_the_majority_of_the_patch(monkeypatch):
    """The maps of the template decide, voxel by voxel; every labelled patch lies inside the brain."""
    datasets = pytest.importorskip("nilearn.datasets")
    calls, sample = [], volumes.sample
    monkeypatch.setattr(volumes, "sample", lambda *arguments: calls.append(arguments) or sample(*arguments))
    dataset = volumes.patches(SMALL)
    assert [len(split) for split in dataset.splits.values()] == [30, 15]
    assert dataset.image_shape == (8, 8, 8, 1)
    loaders = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    grey, white, inside = (load(resolution=1).get_fdata() for load in loaders)
    labels = calls[0][2]
    rng = np.random.default_rng(0)
    for label in (-1, 0, 1, 2):
        for start in rng.choice(np.argwhere(labels == label), 20):
            parts = [x[slices(start)].mean() for x in (grey, white)]
            shares = [*parts, 1 - sum(parts)]
            clear = max(shares) >= volumes.MAJORITY and inside[slices(start)].all()
            assert label == (np.argmax(shares) if clear else -1)
    assert [call[3] for call in calls] == [brain.TRAINING, brain.TEST]
    volumes.patches(dataclasses.replace(SMALL, validate=True))
    assert {*calls[2][3], *calls[3][3]} == {*brain.TRAINING}


def test_there_must_be_patches_for_a_batch():
    with pytest.raises(ValueError, match="--batch-size must be at most the 15 training examples, got 60"):
        volumes.main(volumes.Config(patches=5))


def test_the_image_mirrors_itself():
    """Slabs from left to right would hold the test patches mirrored; slabs from back to front do not."""
    datasets = pytest.importorskip("nilearn.datasets")
    image = datasets.load_mni152_template(resolution=1).get_fdata()
    np.testing.assert_array_equal(image, image[::-1])


def test_the_program_in_small(tmp_path, monkeypatch, capsys):
    """One row per architecture and part; finished architectures are not trained again; the time is measured again."""
    pytest.importorskip("nilearn")
    config = dataclasses.replace(SMALL, out=tmp_path / "volumes")
    monkeypatch.setattr(volumes, "ROUNDS", 1)
    volumes.main(config)
    rows = read_rows(tmp_path / "volumes.jsonl")
    assert [(row["part"], row["architecture"]) for row in rows] == [
        (part, architecture) for part in ("accuracy", "time") for architecture in SMALL.architectures
    ]
    assert all(0 <= x <= 1 for row in rows[:2] for x in row["test_accuracies"])
    assert all(row["step_milliseconds"] > 0 and row["temporary_mib"] > 0 for row in rows[2:])
    assert (tmp_path / "volumes.md").read_text("utf-8") == volumes.markdown(rows)
    assert "resnet" in capsys.readouterr().out
    monkeypatch.setattr(volumes, "train", None)
    monkeypatch.setattr(volumes, "measure", lambda config, dataset, mesh: [{**rows[2], "step_milliseconds": 5}])
    volumes.main(config)
    again = read_rows(tmp_path / "volumes.jsonl")
    assert again[:2] == rows[:2]
    assert [row["step_milliseconds"] for row in again[2:]] == [5]
