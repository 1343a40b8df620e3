"""Tests the study of reach: the class of a point is that of the one cause at the stated distance."""

import numpy as np
import pytest

from experiments import reach
from experiments.common.files import read_rows
from lowcost.data import IGNORED


@pytest.mark.parametrize("task", ["rings", "bars", "pulses"])
@pytest.mark.parametrize("distance", [3, 12])
def test_the_class_is_that_of_the_mark_at_the_distance(task, distance):
    """Every labelled point is marked, and exactly one cause at this distance has its class."""
    split = reach.examples(task, distance, 40, seed=0)
    causes, marks = split.images[..., :2] > 0, split.images[..., 2] > 0
    grid = np.array(marks.shape[1:])
    assert 0.2 < np.mean(split.labels[split.labels != IGNORED]) < 0.8
    for image in range(40):
        found, points = np.argwhere(causes[image]), np.argwhere(split.labels[image] != IGNORED)
        places, kinds = found[:, :-1], found[:, -1]
        expected = {"rings": points.shape[0] > 4 * distance, "bars": len(points) == 3, "pulses": len(points) == 2}
        assert expected[task]
        assert len(places) == {"rings": 1, "bars": 3, "pulses": 2}[task]
        for point in points:
            assert marks[(image, *point)]
            offsets = (point - places + grid // 2) % grid - grid // 2
            if task == "bars":  # the marked line between them
                lines = (
                    place + np.outer(np.arange(distance), np.sign(x)) for place, x in zip(places, offsets, strict=True)
                )
                marked = [marks[image][tuple((line % grid).T)].all() for line in lines]
                same = marked & (np.abs(offsets).sum(1) == distance) & (offsets == 0).any(1)
            else:
                apart = np.hypot(*offsets.T) if task == "rings" else offsets[:, 0] % grid[0]
                same = np.abs(apart - distance) < 0.5
            assert kinds[same].tolist() == [split.labels[(image, *point)]]


def test_distances_must_fit_the_grid():
    with pytest.raises(ValueError, match=r"--distances must be from 1 to 15 for these tasks, got \(5, 16\)"):
        reach.main(reach.Config(distances=(5, 16)))
    with pytest.raises(ValueError, match=r"--distances must be from 1 to 15 for these tasks, got none"):
        reach.main(reach.Config(distances=()))


def test_the_reach_must_be_positive():
    for far in (0.0, -3.0, float("inf")):
        with pytest.raises(ValueError, match=f"--reach must be finite and above 0, got {far}; e.g. 8"):
            reach.main(reach.Config(reach=far))


def test_there_must_be_examples_for_a_batch():
    with pytest.raises(ValueError, match="--batch-size must be at most the 20 training examples, got 32"):
        reach.main(reach.Config(examples=20))


def test_seeds_are_other_images():
    first, again, other = (reach.examples("bars", 5, 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()


def test_a_study_is_written_and_continued(tmp_path, monkeypatch, capsys):
    """A second run measures only the missing distance; the page has one column per distance and both radii."""
    monkeypatch.setattr(reach, "NETWORKS", (("implicit_rd", True), ("mobilenet", False)))
    sizes = {"channels": 2, "steps_per_block": 1, "examples": 8, "epochs": 1, "batch_size": 4, "seeds": 1}
    reach.main(reach.Config(tasks=("pulses",), distances=(4,), out=tmp_path / "reach", **sizes))
    first = read_rows(tmp_path / "reach.jsonl")
    assert [row["reach"] for row in first] == [8.0, 0.0]
    assert first[0]["green"] == pytest.approx(8, rel=0.2)
    assert "green" not in first[1]
    assert all(0 <= row["accuracy"] <= 1 and 0 < row["sees"] < 32 for row in first)
    monkeypatch.setattr(reach, "NETWORKS", (("implicit_rd", True),))
    reach.main(reach.Config(tasks=("pulses",), distances=(4, 5), out=tmp_path / "reach", **sizes))
    rows = read_rows(tmp_path / "reach.jsonl")
    assert rows[:2] == first
    assert [row["distance"] for row in rows] == [4, 4, 5]
    page = (tmp_path / "reach.md").read_text("utf-8")
    assert "| network | weights | d = 4 | d = 5 | gradient's radius | Green's radius |" in page
    assert page == reach.markdown(rows)
    assert (tmp_path / "reach.png").stat().st_size > 10_000
