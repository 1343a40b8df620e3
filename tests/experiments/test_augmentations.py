"""The picture of all augmentations: pixel by pixel what the functions return."""

import inspect
import subprocess
import sys

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

from experiments import augmentations
from experiments.augmentations import Config, augmented, choose, draw, main
from lowcost import data
from lowcost.data import random_flip


def tiles(page, scale, rows, grid):
    """The images of a page, [rows, 8, *grid, 3], once it is seen that each pixel fills a square of its own."""
    height, width = (n * scale for n in grid)
    gap, top = augmentations.GAP, augmentations.MARGIN
    left = top + augmentations.LABEL
    assert page.shape == (2 * top - gap + rows * (height + gap), left + top - gap + 8 * (width + gap), 3)
    squares = np.stack(
        [
            [page[y : y + height, x : x + width] for x in range(left, page.shape[1] - top, width + gap)]
            for y in range(top, page.shape[0] - top, height + gap)
        ]
    )
    pixels = squares[:, :, ::scale, ::scale]
    np.testing.assert_array_equal(pixels.repeat(scale, 2).repeat(scale, 3), squares)
    return pixels / 255


def test_draws_what_the_functions_return(tmp_path, capsys):
    path = tmp_path / "new" / "digits.png"
    main(Config("digits", seed=3, out=path))
    train = data.digits().train
    chosen = choose(train.labels, 3)
    page = np.asarray(Image.open(path).convert("RGB"))
    rows = augmented(train.images[chosen].astype(np.float32) / 255, chosen, 3)
    shown = tiles(page, 8, len(rows), (12, 12))
    np.testing.assert_allclose(shown[0], np.broadcast_to(train.images[chosen] / 255, shown[0].shape), atol=0.02)
    for pixels, images in zip(shown, rows.values(), strict=True):
        np.testing.assert_allclose(pixels, np.broadcast_to(np.clip(images, 0, 1), pixels.shape), atol=0.02)
    labels = page[:, augmentations.MARGIN : augmentations.MARGIN + augmentations.LABEL - 1]
    for y in range(augmentations.MARGIN, page.shape[0] - augmentations.MARGIN, 96 + augmentations.GAP):
        assert (labels[y : y + 48] < 128).any()
        assert (labels[y + 48 : y + 96] < 128).any()
    assert str(path) in capsys.readouterr().out


def test_every_function_changes_the_images():
    """Each in its own way, and the two epochs of alternating_flip are mirror images of each other."""
    images = np.random.default_rng(0).random((8, 32, 32, 3), np.float32)
    rows = {name: np.asarray(row) for name, row in augmented(images, np.arange(8), 5).items()}
    functions = [name for name, _ in rows]
    public = {name for name, _ in inspect.getmembers(data.augment, inspect.isfunction) if not name.startswith("_")}
    assert functions[0] == "images"
    assert set(functions[1:]) == public
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
    np.testing.assert_array_equal(rows["random_flip", "probability 1/2"], random_flip(jax.random.key(5), images))
    now, then = (rows["alternating_flip", f"epoch {epoch}"] for epoch in (0, 1))
    np.testing.assert_array_equal(now + then, images + images[:, :, ::-1])
    assert ((rows["cutout", "pixels=8"] == 0).sum((1, 2, 3)) <= 3 * 64).all()


def test_colours_in_a_small_file(tmp_path):
    """Oblong images too; at most 32 values a channel."""
    images = np.random.default_rng(0).random((8, 20, 27, 3))
    draw({("one", ""): images, ("two", "mirrored"): images[:, :, ::-1]}, tmp_path / "colours.png")
    shown = tiles(np.asarray(Image.open(tmp_path / "colours.png").convert("RGB")), 3, 2, (20, 27))
    np.testing.assert_allclose(shown[0], images, atol=0.02)
    np.testing.assert_allclose(shown[1], images[:, :, ::-1], atol=0.02)
    assert len(np.unique(shown)) == 32


def test_eight_images_of_different_classes():
    labels = np.arange(1000) // 100
    chosen = choose(labels, 0)
    assert len(set(labels[chosen])) == 8
    assert {label for seed in range(9) for label in labels[choose(labels, seed)]} == set(range(10))
    assert set(chosen) != set(choose(labels, 1))
    few = choose(np.arange(20) % 3, 0)
    assert len(set(few)) == 8
    assert set(few[:3] % 3) == {0, 1, 2}
    assert sorted(choose(np.zeros(5, int), 0)) == [0, 1, 2, 3, 4]


def test_help_explains_every_flag():
    """--help names the flags with what they mean, at once, that is without importing JAX."""
    command = [sys.executable, "-X", "importtime", "-m", "experiments.augmentations", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert all(text in result.stdout for text in ("DATASET", "cifar10", "--data-dir", "--seed", "--out", "The PNG."))
    assert not any(f" {name}\n" in result.stderr for name in ("jax", "numpy", "matplotlib"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["letters"], "name must be one of .* got 'letters'"),
        (["folder"], "data_dir must be the folder"),
        (["digits", "--out", "."], "Is a directory"),
        (["digits", "--seed", "-1"], "non-negative"),
    ],
)
def test_what_the_user_can_fix_is_an_error_that_the_entry_prints(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        augmentations.main(tyro.cli(augmentations.Config, args=arguments))
