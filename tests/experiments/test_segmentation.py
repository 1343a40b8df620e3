"""Tests the dense benchmark: equal weights, disjoint parts, the U-Net's shapes, and the program in small."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import segmentation
from experiments.common import brain, scenes
from experiments.common.files import read_rows
from experiments.common.flax_networks import UNet
from experiments.common.scenes import TASKS, Scene, Setting
from lowcost.data import IGNORED
from lowcost.train.state import count_weights


def shapes(net, *grid):
    return jax.eval_shape(lambda key: net.init_with_output(key, jnp.zeros((2, *grid, 1))), jax.random.key(0))


@pytest.mark.parametrize("task", TASKS)
def test_all_networks_have_equal_weights(task):
    """The numbers of weights agree within 15 %, and every network gives logits for each point."""
    grid = (TASKS[task].side,) * {"microscopy": 2, "tissue": 3}[task]
    weights = {}
    for name, net in TASKS[task].networks.items():
        logits, variables = shapes(net, *grid)
        assert logits.shape == (2, *grid, len(TASKS[task].classes))
        weights[name] = count_weights(variables["params"])
    assert max(weights.values()) <= 1.15 * min(weights.values()), weights


@pytest.mark.parametrize("grid", [(8,), (12, 8), (4, 8, 4)])
def test_the_unet_labels_every_point(grid):
    """Its weights are those of two convolutions per level, down and up, and of the classifier."""
    logits, variables = shapes(UNet((2, 4, 8), 3), *grid)
    assert logits.shape == (2, *grid, 3)
    convolutions = [(1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8 + 4, 4), (4, 4), (4 + 2, 2), (2, 2)]
    expected = sum(3 ** len(grid) * a * b + 2 * b for a, b in convolutions) + 2 * 3 + 3
    assert count_weights(variables["params"]) == expected


def test_the_unet_moves_with_the_image():
    """A shift of the image by one cell of the coarsest level shifts the logits, because the levels are aligned."""
    net, image = UNet((2, 4), 2), np.zeros((1, 64, 1), np.float32)
    image[0, 28:36, 0] = np.random.default_rng(0).standard_normal(8)
    variables = net.init(jax.random.key(0), image)
    one, other = (net.apply(variables, np.roll(image, shift, 1)) for shift in (0, 2))
    assert np.ptp(one) > 0.1
    np.testing.assert_allclose(other, np.roll(one, 2, 1), atol=1e-6)


@pytest.mark.parametrize("grid", [(6, 8), (4, 4, 7)])
def test_the_unet_refuses_a_grid_that_its_levels_do_not_divide(grid):
    with pytest.raises(ValueError, match=r"grid axes that are multiples of 4, got shape .*; crop or pad them"):
        shapes(UNet((2, 4, 8), 3), *grid)


def inside(box, shape):
    found = np.zeros(shape, bool)
    found[tuple(slice(*ends) for ends in box)] = True
    return found


def test_the_halves_share_no_pixel():
    """The parts for validation divide the left half."""
    left, right, upper, lower = (
        inside(getattr(scenes, name), (512, 512)) for name in ("LEFT", "RIGHT", "UPPER", "LOWER")
    )
    assert (left ^ right).all()
    assert not (upper & lower).any()
    assert ((upper | lower) == left).all()


def numbered():
    """Returns an image whose voxels hold their own positions, with two training boxes and one test box."""
    shape = (16, 40, 12)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    labels = np.where(np.random.default_rng(0).random(shape) < 0.2, IGNORED, image % 3).astype(np.uint8)
    train = [((0, 16), ends, (0, 12)) for ends in ((0, 10), (25, 40))]
    return Scene(image, labels, train, [((0, 16), (12, 23), (0, 12))], np.s_[:, 14])


def test_patches_lie_within_the_training_part():
    """No voxel of the test part reaches training; image and labels are flipped alike, in each direction."""
    scene, rng = numbered(), np.random.default_rng(0)
    images, labels = segmentation.batch(rng, scene, 4, 300)
    assert images.shape == (300, 4, 4, 4, 1)
    seen, orientations = images[..., 0].astype(int), set()
    np.testing.assert_array_equal(labels, scene.labels.ravel()[seen])
    trained = sum(inside(box, scene.image.shape) for box in scene.train).ravel()
    assert trained[seen].all()
    columns = np.unique(np.unravel_index(seen, scene.image.shape)[1])
    assert columns.tolist() == [*range(10), *range(25, 40)]
    for patch in seen:
        steps = patch[1, 0, 0] - patch[0, 0, 0], patch[0, 1, 0] - patch[0, 0, 0], patch[0, 0, 1] - patch[0, 0, 0]
        assert np.abs(steps).tolist() == [40 * 12, 12, 1]
        orientations.add(tuple(np.sign(steps)))
    assert len(orientations) == 8


def test_tiles_lie_side_by_side_within_the_test_part():
    """Tiles without labels are left out; a tile as large as the box is the box."""
    scene = numbered()
    scene.labels[:4, 12:16, :4] = IGNORED
    counts = np.zeros(scene.image.shape, int)
    for place in segmentation.tiles(scene, 4):
        assert counts[place].shape == (4, 4, 4)
        counts[place] += 1
    assert counts.max() == 1
    assert counts.sum() == (4 * 2 * 3 - 1) * 4**3
    assert not counts[~inside(scene.test[0], counts.shape)].any()
    assert segmentation.tiles(scene, 100) == [tuple(slice(*ends) for ends in scene.test[0])]


def test_the_slabs_of_the_template_share_no_voxel(monkeypatch):
    """The image is turned upright with its labels, which are the largest shares inside the brain."""
    shape = (5, 233, 4)
    maps = np.random.default_rng(0).random((3, *shape))
    inside_brain = np.random.default_rng(1).random(shape) < 0.5
    monkeypatch.setattr(brain, "template", lambda: (maps[0], maps, inside_brain))
    for validate in (False, True):
        scene = scenes.tissue(validate)
        np.testing.assert_array_equal(scene.image, maps[0].transpose(2, 1, 0)[::-1])
        x, y, z = 2, 100, 1
        expected = maps[:, x, y, z].argmax() if inside_brain[x, y, z] else IGNORED
        assert scene.labels[4 - 1 - z, y, x] == expected
        train, test = (sum(inside(box, scene.image.shape) for box in boxes) for boxes in (scene.train, scene.test))
        assert not (train * test).any()
        shown = np.zeros_like(train)
        shown[scene.shown] = 1
        assert (test * shown).any()
    everything = sorted(ends for _, ends, _ in itertools.chain(scene.train, scene.test))
    assert everything == sorted(brain.TRAINING)


def test_the_image_of_nuclei_is_read_without_its_package(tmp_path, monkeypatch):
    """The package is found and not imported; without it the error names the command that installs it."""
    folder = tmp_path / "stardist" / "data" / "images"
    folder.mkdir(parents=True)
    (tmp_path / "stardist" / "__init__.py").write_text("raise RuntimeError('imported')")
    numbers = np.arange(512 * 512).reshape(512, 512) % 180
    for name, content in (("img", numbers), ("mask", numbers // 100)):
        Image.fromarray(content.astype(np.uint16)).save(folder / f"{name}2d.tif")
    monkeypatch.syspath_prepend(tmp_path)
    scene = scenes.microscopy(validate=False)
    np.testing.assert_allclose(scene.image, numbers / 255, rtol=1e-6)
    np.testing.assert_array_equal(scene.labels, numbers >= 100)
    assert (scene.train, scene.test) == ([scenes.LEFT], [scenes.RIGHT])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="run pip install --no-deps stardist"):
        scenes.microscopy(validate=False)


def striped(validate):
    """Returns stripes of two classes that differ in brightness."""
    labels = np.indices((16, 32)).sum(0).astype(np.uint8) // 4 % 2
    return Scene(labels.astype(np.float32), labels, [((0, 16), (0, 16))], [((0, 16), (16, 32))], np.s_[:, 16:])


def test_the_program_in_small(tmp_path, monkeypatch, capsys):
    """Measured networks are not measured again; the page and the figure show what the rows and the files hold."""
    networks = scenes.networks(2, 1, 2, {"implicit_rd": 2}, [(2, 4)], (2, 4))
    del networks["implicit_rd, reach 2"], networks["implicit_rd, decoder"]
    setting = Setting(striped, ("dark", "bright"), 8, 16, 2, networks)
    monkeypatch.setattr(segmentation, "TASKS", TASKS | {"microscopy": setting})
    monkeypatch.setattr(segmentation, "ROUNDS", 1)
    config = segmentation.Config(tasks=("microscopy",), steps=6, seeds=2, out=tmp_path / "figures")
    segmentation.main(config)
    rows = read_rows(tmp_path / "figures.jsonl")
    assert [row["network"] for row in rows] == ["implicit_rd", "U-Net, 2 levels"]
    for row in rows:
        assert row["step_milliseconds"] > 0
        assert row["mean_iou"] == pytest.approx(np.mean(row["mean_iou_each"]))
        assert row["mean_iou"] == pytest.approx(np.mean(row["ious"]))
        assert row["mean_iou"] <= row["mean_dice"] <= 1
        mask = np.asarray(Image.open(segmentation.mask_path(config, "microscopy", row["network"])))
        assert mask.shape == (16, 16)
        assert row["accuracy_each"][0] == pytest.approx(np.mean(mask == striped(False).labels[:, 16:]))
    page = (tmp_path / "figures.md").read_text("utf-8")
    assert page == segmentation.markdown(rows, "figures")
    assert "| network | weights | mean IoU | mean Dice | IoU of dark | IoU of bright | ms per step |" in page
    assert "random patches of\n  8x8 pixels, 2 per optimiser step" in page
    assert (tmp_path / "figures-microscopy.png").stat().st_size > 10_000
    assert "U-Net" in capsys.readouterr().out
    monkeypatch.setattr(segmentation, "train", None)
    monkeypatch.setattr(segmentation, "measure", None)
    segmentation.main(config)
    assert read_rows(tmp_path / "figures.jsonl") == rows
