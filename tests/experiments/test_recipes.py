"""Tests recipes: the paper's is that of Section 4, and each ingredient has its stated effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from experiments.ablation import VARIANTS, Config, main, markdown, variants
from experiments.common.config import TrainConfig, shown
from experiments.common.recipes import RECIPES, Recipe, _matrices
from lowcost import data
from lowcost.nn import network
from lowcost.train.step import Draw

KEEPS = ("shift", "hide")


def rates(recipe, steps):
    """Returns the learning rate of each step, which is Adam's update of a weight with a constant gradient."""
    optimizer = recipe.transformation(steps, 1)
    weights, moved = jnp.zeros((1,)), []
    state, update = optimizer.init(weights), jax.jit(optimizer.update)
    for _ in range(steps):
        change, state = update(jnp.ones((1,)), state, weights)
        moved.append(-float(change[0]))
    return np.array(moved)


def test_the_paper_halves_its_rate_every_sixty_of_three_hundred_epochs():
    assert RECIPES["paper"].epochs == 300
    expected = 0.01 * 0.5 ** (np.arange(300) // 60)
    np.testing.assert_allclose(rates(RECIPES["paper"], 300), expected, rtol=1e-4)


def test_one_cycle_rises_and_falls():
    recipe = Recipe(optimizer="adam", schedule="one_cycle", learning_rate=0.02)
    moved = rates(recipe, 100)
    assert np.argmax(moved) == 5
    assert moved[[0, 5]] == pytest.approx([0.002, 0.02], rel=1e-3)
    assert np.all(np.diff(moved[5:]) < 0)
    assert 0.002 <= moved[-1] < 0.0021


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 20])
def test_short_runs_start_at_the_full_rate_and_reach_it(steps):
    """The rate halves after each fifth that has a step of its own and never rises; one cycle reaches its peak."""
    expected = 0.01 * 0.5 ** np.searchsorted(sorted({steps * i // 5 for i in range(5)}), np.arange(steps), "right") * 2
    np.testing.assert_allclose(rates(RECIPES["paper"], steps), expected, rtol=1e-4)
    cycle = rates(Recipe(optimizer="adam", schedule="one_cycle", learning_rate=0.02), steps)
    assert cycle.max() == pytest.approx(0.02, rel=1e-3)
    assert np.argmax(cycle) <= 1


def test_muon_orthogonalises_the_matrices_alone():
    """The update of M has similar singular values, unlike the gradient; the classifier gets Adam's update."""
    net = network("linear_mix", (8,), 3, steps_per_block=1)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    grads = jax.tree.unflatten(
        jax.tree.structure(params),
        [jax.random.normal(k, x.shape) for k, x in zip(keys, jax.tree.leaves(params), strict=True)],
    )
    updates = {}
    for name in "muon", "adamw":
        optimizer = Recipe(optimizer=name).transformation(10, 1)
        updates[name], _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for matrix in "matrix1", "matrix2":
        before, after = (
            np.linalg.svd(tree["block1_step1"][matrix], compute_uv=False) for tree in (grads, updates["muon"])
        )
        assert before[0] / before[-1] > 5
        assert after[0] / after[-1] < 3
    sizes = [float(optax.tree.norm(tree["block1_step1"])) for tree in updates.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.6)  # one learning rate suits both
    sign = np.sign(updates["muon"]["classifier"]["kernel"])
    np.testing.assert_array_equal(sign, -np.sign(grads["classifier"]["kernel"]))


TAKEN = {
    "resnet": ("stencil1", "stencil2"),
    "linear_mix": ("matrix1", "matrix2"),
    "mobilenet": ("matrix",),
    "circulant_rd": ("matrix",),
}
"""The weights of a step that Muon updates."""


@pytest.mark.parametrize("grid", [(8,), (8, 8), (5, 5, 5)])
@pytest.mark.parametrize("architecture", TAKEN)
def test_muon_takes_matrices_and_coupled_stencils_of_steps(architecture, grid):
    """Muon updates no other stencils and not the opening, although this opening has equal channels too."""
    net = network(architecture, (6,), 3, steps_per_block=1)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *grid, 6)))["params"]
    found = jax.tree_util.tree_leaves_with_path(
        _matrices(params), is_leaf=lambda x: isinstance(x, MuonDimensionNumbers)
    )
    taken = {(path[0].key, path[-1].key): x for path, x in found}
    assert taken.keys() == {("block1_step1", name) for name in TAKEN[architecture]}
    rows = len(grid) + 1 if architecture == "resnet" else 1
    assert set(taken.values()) == {MuonDimensionNumbers(tuple(range(rows)), rows)}


def test_muon_orthogonalises_a_coupled_stencil_as_a_matrix():
    """[*window, C_in, C_out] is taken as [window · C_in, C_out]: the update is that of this matrix."""
    stencil, grad = jax.random.normal(jax.random.key(0), (2, 3, 3, 4, 4))
    optimizer = Recipe(optimizer="muon").transformation(10, 1)

    def update(name, shape):
        params, grads = ({"step": {name: x.reshape(shape)}} for x in (stencil, grad))
        return jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]["step"][name]

    flat = update("matrix", (36, 4))
    np.testing.assert_allclose(update("stencil1", stencil.shape).reshape(36, 4), flat, rtol=1e-5, atol=1e-8)
    singular = np.linalg.svd(flat, compute_uv=False)
    assert singular[0] / singular[-1] < 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_but_the_matrices_learn_at_the_stencil_rate(optimizer):
    params = {
        "step": {"stencil": jnp.ones((3, 3, 4)), "matrix": jnp.eye(4)},
        "classifier": {"kernel": jnp.ones((4, 2))},
    }
    grads = jax.tree.map(lambda x: x + 0.5, params)
    moved = {}
    for rate in 0.3, 1.0:
        recipe = Recipe(optimizer=optimizer, stencil_rate=rate, weight_decay=0.1)
        transformation = recipe.transformation(10, 1)
        moved[rate], _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
    ratios = jax.tree.map(lambda a, b: float(jnp.sum(a) / jnp.sum(b)), moved[0.3], moved[1.0])
    assert ratios == {
        "step": {"stencil": pytest.approx(0.3), "matrix": 1.0},
        "classifier": {"kernel": pytest.approx(0.3)},
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_alone_decay_late(optimizer):
    """Without a gradient they decay by the learning rate times the decay, from the first step of epoch `late` on."""
    params = {"matrix": jnp.eye(4), "stencil": jnp.ones((3, 3, 4))}
    recipe = Recipe(optimizer=optimizer, learning_rate=0.01, late=2, matrix_decay=0.5)
    transformation = recipe.transformation(10, 3)
    state, factors = transformation.init(params), []
    for _ in range(8):
        updates, state = jax.jit(transformation.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        factors.append(float(updates["matrix"][0, 0]))
        assert not updates["stencil"].any()
    assert factors[:6] == [0] * 6
    assert factors[6:] == [pytest.approx(-0.01 * 0.5 * scale) for scale in (0.5, 0.5)]


@pytest.mark.parametrize("mirror", [True, False])
def test_alternating_flips_show_both_versions_in_two_epochs(mirror):
    augment = jax.jit(RECIPES["fast"].augmentation(("flip", *KEEPS) if mirror else KEEPS))
    ramp = jnp.broadcast_to(jnp.arange(12.0)[None, None, :, None], (64, 12, 12, 1))
    key, rows = jax.random.key(0), jnp.arange(64)
    first, second = (
        np.asarray(augment(ramp, Draw(key, jax.random.fold_in(key, epoch), rows, jnp.int32(epoch)))) for epoch in (0, 1)
    )
    rising = [images[:, 5, 8, 0] > images[:, 5, 3, 0] for images in (first, second)]
    assert np.array_equal(rising[0], ~rising[1]) if mirror else rising[0].all() and rising[1].all()


@pytest.mark.parametrize("shift", ["translate", "resized_crop"])
def test_a_square_is_hidden_once_the_images_are_known(shift):
    """Nothing is hidden before epoch `late`; then a flat image shows a square with a quarter of its side."""
    key, rows = jax.random.key(0), jnp.arange(64)
    recipe = Recipe(shift=shift, late=5, hidden=0.25)
    plain, heavier = (
        jax.jit(r.augmentation(("flip", *KEEPS))) for r in (dataclasses.replace(recipe, hidden=0.0), recipe)
    )
    noise = jax.random.uniform(key, (64, 16, 16, 3))
    draws = [Draw(key, jax.random.fold_in(key, epoch), rows, jnp.int32(epoch)) for epoch in (4, 5)]
    np.testing.assert_array_equal(heavier(noise, draws[0]), plain(noise, draws[0]))
    assert not np.array_equal(heavier(noise, draws[1]), plain(noise, draws[1]))

    holes = np.asarray(recipe.augmentation(("flip", *KEEPS))(jnp.full((64, 16, 16, 1), 0.25), draws[1]) == 0.5)
    assert holes.sum((1, 2, 3)).max() == 16
    assert (holes.sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("side", "far"), [(32, 4), (16, 2)])
def test_translations_reach_twice_as_far_once_the_images_are_known(side, far):
    """In small images they do not, because most of the image would be lost."""
    key, rows = jax.random.key(0), jnp.arange(256)
    augment = Recipe(shift="translate", late=5, hidden=0.25).augmentation(KEEPS)
    middle = side // 2
    column = jnp.zeros((256, side, side, 1)).at[:, :, middle].set(1.0)
    for epoch, reach in (4, 2), (5, far):
        images = np.asarray(augment(column, Draw(key, jax.random.fold_in(key, epoch), rows, jnp.int32(epoch))))
        where = (images[..., 0] == 1).any(1).argmax(1)
        assert set(where) == set(range(middle - reach, middle + reach + 1))


UNITS = ((100.0, -3.0), (50.0, 0.25))
EVERYTHING = {"late": 1, "hidden": 0.25, "scaling": 0.2, "jitter": 0.1}


def draw(epoch, images):
    key = jax.random.key(0)
    return Draw(key, jax.random.fold_in(key, epoch), jnp.arange(images), jnp.int32(epoch))


@pytest.mark.parametrize("shape", [(16, 2), (16, 12, 2), (8, 9, 7, 2)], ids=str)
@pytest.mark.parametrize("shift", ["translate", "resized_crop"])
def test_only_changes_that_keep_the_label_are_made(shift, shape):
    """Each change has a different effect on any grid; without permission the images stay unchanged."""
    recipe = Recipe(shift=shift, **EVERYTHING)
    images = jax.random.uniform(jax.random.key(1), (20, *shape))
    results = {
        keeps: np.asarray(jax.jit(recipe.augmentation(keeps))(images, draw(1, 20)))
        for keeps in ((), *[(change,) for change in ("flip", "shift", "hide", "scale", "noise")])
    }
    np.testing.assert_allclose(results.pop(()), images, atol=1e-6)
    assert len({result.tobytes() for result in results.values()} | {np.asarray(images).tobytes()}) == 6
    factors = results["scale",] / images
    np.testing.assert_allclose(np.ptp(factors, axis=tuple(range(1, factors.ndim))), 0, atol=1e-5)
    assert np.std(results["noise",] - images) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("moments", [None, ((0.5,), (2.0,))], ids=["plain", "standardised"])
def test_labels_are_mixed_as_the_images_are(moments):
    """The share of its own label is the share of its own points; without "hide" nothing is mixed."""
    recipe = Recipe(mixed=0.5)
    images = jnp.broadcast_to(jnp.arange(40.0)[:, None, None, None], (40, 10, 12, 1))
    augment, mix = jax.jit(recipe.augmentation(("hide",), moments)), jax.jit(recipe.label_mixing((10, 12)))
    for epoch in range(2):
        changed = augment(images, draw(epoch, 40))
        own, other, shares = mix(jnp.arange(40), draw(epoch, 40))
        np.testing.assert_array_equal(other, np.roll(own, -1))
        kept = np.abs(changed - own[:, None, None, None]) < 1e-4
        np.testing.assert_allclose(kept.mean((1, 2, 3)), shares, rtol=1e-6)
        assert 10 < (shares < 1).sum() < 30
        assert np.abs(np.where(kept, 0, changed - other[:, None, None, None])).max() < 1e-4
    np.testing.assert_array_equal(jax.jit(recipe.augmentation(()))(images, draw(0, 40)), images)


@pytest.mark.parametrize("shift", ["translate", "resized_crop"])
def test_images_with_moments_are_changed_as_standardised_ones(shift):
    """The result is the same in any units; hidden parts and points outside of a window have the mean."""
    recipe = Recipe(shift=shift, **EVERYTHING)
    keeps = ("flip", "shift", "hide", "scale", "noise")
    standard = jax.random.normal(jax.random.key(1), (30, 24, 2))
    means, deviations = np.array(UNITS, np.float32)[:, None, None]
    in_units = jax.jit(recipe.augmentation(keeps, UNITS))(standard * deviations + means, draw(1, 30))
    plain = jax.jit(recipe.augmentation(keeps, ((0.0, 0.0), (1.0, 1.0))))(standard, draw(1, 30))
    np.testing.assert_allclose((in_units - means) / deviations, plain, atol=1e-4)
    hidden = jax.jit(recipe.augmentation(("hide",), UNITS))(standard * deviations + means, draw(1, 30))
    alike = np.abs(hidden - means) < 1e-4 * deviations
    assert 0 < alike.all(-1).sum(1).min() <= alike.all(-1).sum(1).max() <= 6


@pytest.mark.parametrize("name", ["paper", "fast"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_augmented_integers_stay_in_the_range_of_the_data(dtype, name):
    """Windows that exceed the image and hidden parts show the mean, not the ends of the range of the dtype."""
    images = np.random.default_rng(0).integers(20000, 21000, (40, 16, 12, 2)).astype(dtype)
    split = data.Split(images, np.arange(40, dtype=np.int32) % 2)
    moments = data.Dataset("narrow", split, split, ("a", "b"), KEEPS).moments
    unit = data.to_unit_range(images)
    for epoch in (0, RECIPES[name].late):
        changed = jax.jit(RECIPES[name].augmentation(KEEPS, moments))(unit, draw(epoch, 40))
        assert not np.array_equal(changed, unit)
        assert unit.min() - 1e-6 <= np.min(changed)
        assert np.max(changed) <= unit.max() + 1e-6


@pytest.mark.parametrize("shift", ["translate", "resized_crop"])
@pytest.mark.parametrize("keeps", [("shift",), ("hide", "scale", "noise"), ("flip", "shift", "hide", "scale", "noise")])
def test_a_mask_stays_a_mask(shift, keeps):
    """It holds 0 or 1, zeros on the padding and a valid point in every signal; only a shift changes it."""
    lengths = 1 + np.arange(200) % 40
    valid = np.arange(40) < lengths[:, None]
    values = 100 + 50 * np.random.default_rng(0).normal(size=(200, 40, 1))
    signals = np.concatenate([values * valid[..., None], valid[..., None]], -1).astype(np.float32)
    recipe = Recipe(shift=shift, **EVERYTHING)
    augment = jax.jit(recipe.augmentation(keeps, ((100.0,), (50.0,)), True))
    for epoch in range(4):
        changed = np.asarray(augment(signals, draw(epoch, 200)))
        mask = changed[..., 1]
        assert set(np.unique(mask)) == {0, 1}
        assert (changed[..., 0][mask == 0] == 0).all()
        assert (np.abs(changed[..., 0][mask == 1] - 100) < 500).all()
        assert mask.any(1).all()
        assert (np.diff(mask, axis=1) != 0).sum(1).max() <= 2
        if "shift" not in keeps:
            np.testing.assert_array_equal(mask, valid)
        elif shift == "resized_crop":  # between a window inside the signal and one that contains it
            long = lengths > 5
            share = mask.sum(1)[long] / lengths[long]
            assert share.min() > 0.6
            assert share.max() < 1.7


def test_short_signals_are_not_lost():
    """A ramp over few of many points keeps its range of values and at least six points."""
    signals = np.zeros((300, 60, 2), np.float32)
    signals[:, :8, 0], signals[:, :8, 1] = 10 + np.arange(8), 1
    changed = np.asarray(jax.jit(Recipe().augmentation(("shift",), ((0.0,), (1.0,)), True))(signals, draw(0, 300)))
    inside = changed[..., 1] == 1
    assert (changed[..., 0][inside] > 9.9).all()
    assert (changed[..., 0][inside] < 17.1).all()
    assert inside.sum(1).min() >= 6


def test_every_variant_differs_from_the_fast_recipe_in_one_ingredient():
    for name, changes in VARIANTS["recipe"].items():
        varied = dataclasses.replace(RECIPES["fast"], **changes)
        assert len(changes) == (0 if name in ("fast", "paper") else 1)
        assert (varied == RECIPES["fast"]) == (not changes)


def test_a_page_shows_the_flags_and_not_where_images_lie(tmp_path):
    config = Config("folder", data_dir=tmp_path, images="small ones", epochs=6)
    assert shown(config, "dataset") == "--data-dir DIR --epochs 6 --images 'small ones'"
    assert shown(Config(), "dataset") == ""


def test_a_variant_that_so_few_epochs_cannot_show_is_left_out():
    """Runs that differ in anything have different directories."""
    short, long = variants(Config(epochs=5)), variants(Config(epochs=6))
    assert set(long) - set(short) == {"no late decay of the matrices", "light augmentation to the end"}
    directories = {config.directory() for runs in (short, long) for config, _ in runs.values()}
    assert len(directories) == len(short) + len(long)


@pytest.mark.parametrize(("study", "needed"), [("reach", "have implicit steps"), ("circulant", "be circulant_rd")])
def test_studies_of_steps_need_them(study, needed):
    with pytest.raises(ValueError, match=f"--architecture must {needed} for --study {study}, got mobilenet"):
        main(Config(study=study, architecture="mobilenet"))


@pytest.mark.parametrize(("study", "architecture"), [("reach", "implicit_rd"), ("circulant", "circulant_rd")])
def test_studies_of_steps_change_the_network_alone(study, architecture):
    """All runs have the fast recipe, and their directories and configurations differ."""
    runs = variants(Config(study=study, architecture=architecture))
    assert all(recipe == RECIPES["fast"] for _, recipe in runs.values())
    both = [*runs.values(), *variants(Config()).values()]
    assert len({config.directory() for config, _ in both}) == len(both)
    assert len({dataclasses.replace(config, workdir=None) for config, _ in runs.values()}) == len(runs)


def test_the_study_of_reach_has_reaches_and_stencils():
    runs = variants(Config(study="reach"))
    assert runs["reach 8"][0].reach == 8
    assert runs["explicit, 5x5"][0].kernel_size == 5
    assert runs["explicit, 5x5"][0].architecture == "explicit_rd"
    assert {run.kernel_size for run, _ in runs.values()} == {3, 5, 7}


def test_the_study_of_distillation_changes_the_teachers_alone():
    """The first run has no teacher; all others have those of the flag."""
    config = Config(study="distillation", teacher=("large", "larger"))
    first, *others = variants(config).values()
    assert (first[0].teacher, first[0].distill) == ((), TrainConfig.distill)
    assert [run.distill for run, _ in others] == [0.5, 0.9]
    for run, recipe in others:
        same = dataclasses.replace(run, teacher=(), distill=TrainConfig.distill, workdir=first[0].workdir)
        assert (run.teacher, recipe, same) == (config.teacher, RECIPES["fast"], first[0])
    for study, teacher in (("distillation", ()), ("recipe", ("large",))):
        with pytest.raises(ValueError, match="--teacher must name networks for --study distillation alone, got "):
            main(Config(study=study, teacher=teacher))


def test_the_table_compares_seed_by_seed():
    def row(variant, *accuracies):
        common = {"architecture": "a", "width": "A", "images": "d", "epochs": 2, "train_images": 9, "test_images": 8}
        spread = {"test_accuracy": np.mean(accuracies), "test_accuracy_std": np.std(accuracies, ddof=1)}
        return {
            "variant": variant,
            "device": "x",
            "flags": "digits --epochs 2",
            "test_accuracies": list(accuracies),
            **common,
            **spread,
        }

    table = markdown([row("fast", 0.5, 0.6, 0.7), row("other", 0.4, 0.5, 0.6)])
    assert "| fast | 60.00 ± 10.00 % |  |" in table
    assert "| other | 50.00 ± 10.00 % | -10.00 ± 0.00 |" in table
    assert "Not measured: without whitening of the opening" in table
    assert "on the test images, and" in table
    assert "\nMade by `python -m experiments.ablation digits --epochs 2`.\n" in table


def test_the_table_compares_on_validation_images():
    """With validation images the table compares on them and also shows the test accuracy."""
    common = {"architecture": "a", "width": "A", "images": "d", "epochs": 2, "train_images": 9, "test_images": 8}
    common |= {"device": "x", "flags": "digits", "validation_images": 7, "validation_accuracy_std": None}
    common |= {"test_accuracy_std": None, "test_accuracy": 0.5, "test_accuracies": [0.5]}
    first, other = (
        common | {"variant": name, "validation_accuracy": share, "validation_accuracies": [share]}
        for name, share in (("fast", 0.25), ("other", 0.75))
    )
    page = markdown([first, other])
    assert "7 validation images" in page
    assert "| fast | 25.00 % |  | 50.00 % |" in page
    assert "| other | 75.00 % | +50.00 | 50.00 % |" in page
