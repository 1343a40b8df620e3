"""Each flag of `train` is recorded and documented, refuses wrong values, and does what its help states."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from chex import assert_trees_all_equal

from experiments import norm_budget, table2
from experiments.common import datasets, description, runs, training
from experiments.common.config import TrainConfig, derived, flags
from experiments.common.files import read_rows
from experiments.common.objective import loss_of
from experiments.common.recipes import RECIPES, Recipe, recipe_named
from experiments.common.workdir import read, shared, write_or_compare
from lowcost import data
from lowcost.train.losses import binary_cross_entropy, cross_entropy, squared_error

DOCS = Path(__file__).parents[2] / "docs"
INGREDIENTS = dataclasses.asdict(RECIPES["paper"])
ABOUT = {"classes": ["0", "1"], "image_shape": [8, 8, 1], "train": 1437}
OF_THE_RUN = {
    "learning_rate": 0.003,
    "flip": "horizontal",
    "label_smoothing": 0.1,
    "class_weights": "auto",
    "task": "tags",
    "test_share": 0.3,
    "grid_axes": 3,
    "length": 50,
    "validation_share": 0.1,
    "keep_best": True,
    "patience": 3,
    "init_from": "old",
    "freeze": ("opening", "block1"),
    "loaded_rate": 0.5,
    "teacher": ("large", "larger"),
    "distill": 0.3,
    "kernel_size": 5,
    "zero_mean": True,
    "norm_budget": 100.0,
    "width": (4, 8),
    "recipe": "own.json",
}
"""Flag → a value other than its default."""
SMALL = {"width": (4, 8), "steps_per_block": 1, "train_images": 40, "batch_size": 20, "epochs": 1}


def params(ready):
    """Returns the shapes of the weights of a run."""
    return ready.abstract_state().params


def dataset(labels=(0, 0, 0, 1), task="classes", names=("cat", "dog")):
    """Returns black images of the digits' shape."""
    split = data.Split(np.zeros((len(labels), 12, 12, 1), np.uint8), np.array(labels, np.int32))
    if task != "classes":
        split = dataclasses.replace(split, labels=np.eye(len(names), dtype=np.float32)[split.labels])
    scale = ((0.0,) * len(names), (1.0,) * len(names)) if task == "values" else None
    return data.Dataset("folder", split, split, names, (), task=task, scale=scale)


@pytest.mark.parametrize("name", OF_THE_RUN)
def test_a_flag_is_recorded_and_another_value_refused(name, tmp_path):
    """Either value refuses the other; programs read the recorded value back, and processes must agree on it."""
    plain = TrainConfig(workdir=tmp_path / "plain", epochs=1, kernel_size=3)
    changed = dataclasses.replace(plain, workdir=tmp_path / "changed", **{name: OF_THE_RUN[name]})
    for config in (plain, changed):
        write_or_compare(config, INGREDIENTS, ABOUT, {}, {})
        write_or_compare(config, INGREDIENTS, ABOUT, {}, {})
        assert read(config.directory())[0] == config
    old, new = (json.loads(json.dumps(getattr(config, name))) for config in (plain, changed))
    for config, there, here in ((changed, old, new), (plain, new, old)):
        other = tmp_path / ("plain" if config is changed else "changed")
        with pytest.raises(ValueError, match=re.escape(f": {name} is {there} there and {here} here; choose")):
            write_or_compare(dataclasses.replace(config, workdir=other), INGREDIENTS, ABOUT, {}, {})
    assert shared(plain)[name] != shared(changed)[name]


def test_all_fields_but_a_few_are_recorded(tmp_path):
    """The other fields change no result, or are recorded under another name."""
    write_or_compare(TrainConfig(workdir=tmp_path), INGREDIENTS, ABOUT, {}, {})
    recorded = json.loads((tmp_path / "config.json").read_text()).keys() - {
        "ingredients",
        "data",
        "settings",
        "methods",
    }
    left_out = {"workdir", "download", "max_pixels", "keep", "tensorboard", "evaluate_every", "cluster", "dry_run"}
    assert recorded == {field.name for field in dataclasses.fields(TrainConfig)} - left_out


@pytest.mark.parametrize("name", [*OF_THE_RUN, "dry_run"])
def test_a_flag_is_documented(name, capsys):
    """--help shows it with its default, the page names it, and the flags that programs write are read back."""
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    flag = f"--{name.replace('_', '-')}"
    default = TrainConfig.__dataclass_fields__[name].default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    *_, entry = re.findall(rf" {flag}[ ,].*?\(default:([^)]*)\)", text)
    assert entry.strip() == shown
    assert flag in (DOCS / "training.md").read_text()
    config = dataclasses.replace(TrainConfig(), **{name: OF_THE_RUN.get(name, True)})
    assert tyro.cli(TrainConfig, args=flags(config)) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"learning_rate": x}, f"--learning-rate must be positive, got {x}") for x in (0.0, -1.0, np.nan, np.inf)],
        *[
            ({"label_smoothing": x}, f"--label-smoothing must be from 0 to below 1, got {x}")
            for x in (-0.1, 1.0, np.nan)
        ],
        ({"class_weights": "none.json"}, "No such file or directory: 'none.json'"),
        ({"task": "tags"}, "task must be classes for digits, got tags; only folder, arrays can have it"),
        ({"test_share": 0.3}, r"test_share must be 0\.2 for digits, got 0\.3; only folder, arrays can have it"),
        (
            {"data_dir": Path("any")},
            "data_dir must be None for digits, got any; only folder, arrays, cifar10, cifar100, ",
        ),
        ({"download": True}, "download must be False for digits, got True; only cifar10, cifar100, stl10 can have it"),
        ({"max_pixels": 9}, "max_pixels must be 50000000 for digits, got 9; only folder can have it"),
        ({"dataset": "folder", "data_dir": Path("any"), "test_share": 2.0}, "test_share must be above 0 and below 1"),
        *[
            ({"validation_share": x}, f"--validation-share must be from 0 to below 1, got {x}")
            for x in (-0.1, 1.0, np.nan)
        ],
        (
            {"keep_best": True},
            "--keep-best and --patience need validation images, got none; add ",
        ),
        (
            {"train_images": 1438},
            "--train-images must be at most the 1437 training images of digits, got 1438; leave it",
        ),
        ({"patience": 3}, "--keep-best and --patience need validation images, got none; add "),
        ({"patience": 0, "validation_share": 0.5}, "--patience must be at least 1, got 0"),
        ({"init_from": "none"}, "source must be a work directory, .* got none; released are "),
        ({"freeze": ("opening",)}, "--freeze and --loaded-rate need --init-from, got none; add it, or leave them out"),
        (
            {"init_from": "x", "reach": 2.0},
            "--reach must be left out with --init-from, which loads the stencils, got 2",
        ),
        ({"loaded_rate": 0.5}, "--freeze and --loaded-rate need --init-from, got none; add it, or leave them out"),
        *[
            ({"init_from": "any", "loaded_rate": x}, f"--loaded-rate must be from 0 to 1, got {x}")
            for x in (-0.5, 1.5, np.nan)
        ],
        (
            {"init_from": "any", "freeze": ("block",)},
            "--freeze must name layers .*, got 'block'; the layers are ",
        ),
        ({"distill": 0.3}, "--distill needs --teacher, got 0.3 and none; add one, or leave it out"),
        *[
            ({"teacher": ("any",), "distill": x}, f"--distill must be above 0 and at most 1, got {x}")
            for x in (0.0, 1.5, np.nan)
        ],
        ({"teacher": ("none",)}, "--teacher none cannot be loaded: source must be a work directory, .* got none; "),
        ({"kernel_size": 0}, "kernel_size must be a whole number of at least 1, got 0"),
        ({"kernel_size": 7}, "with grid axes of at least 13 points, because 2 blocks halve"),
        ({"width": (4, 9)}, r"width must double from block to block, .* got \(4, 9\)"),
        ({"width": (0,)}, r"width must double from block to block, .* got \(0,\)"),
        ({"recipe": "slow"}, "--recipe must be paper, fast, strong or a file FILE.json, got 'slow'"),
        ({"recipe": "none.json"}, "No such file or directory: 'none.json'"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert training.run(TrainConfig(**{"dataset": "digits", **SMALL, **options})) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("runs/[!.]*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--flip", "vertical"],
        ["--task", "boxes"],
        ["--width", "D"],
        ["--width", "4.5"],
        ["--learning-rate", "fast"],
        ["--patience", "1.5"],
        ["--kernel-size", "three"],
    ],
)
def test_a_value_of_the_wrong_type_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        tyro.cli(TrainConfig, args=arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_warning_names_a_decay_that_adam_ignores(tmp_path, capsys):
    """It is no error, because runs with such a recipe must resume."""
    (tmp_path / "own.json").write_text('{"weight_decay": 0.1}')
    recipe_named(str(tmp_path / "own.json"))
    assert "own.json: the optimizer adam ignores weight_decay, got 0.1; state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "got Expecting property name"),
        ("[]", "got list"),
        ('{"rate": 1}', "got rate 1;"),
        ('{"epochs": "ten"}', "got epochs 'ten';"),
        ('{"optimizer": "sgd"}', "got optimizer 'sgd';"),
    ],
)
def test_a_wrong_recipe_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "own.json").write_text(content)
    assert training.run(TrainConfig(recipe=str(tmp_path / "own.json"), workdir=tmp_path / "run", **SMALL)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: --recipe .*own\.json must be a JSON object with ingredients of a recipe .*{message}.*\n", error
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[(name, x, "from 0 to 1") for name in ("hidden", "mixed", "average") for x in (-0.1, 1.5)],
        ("label_smoothing", 1, "from 0 to below 1"),
        *[(name, x, "positive") for name in ("epochs", "learning_rate") for x in (0, -1)],
        *[(name, -1, "at least 0") for name in ("late", "weight_decay", "matrix_decay", "scaling", "jitter")],
        ("jitter", np.inf, "at least 0"),
        ("jitter", np.nan, "at least 0"),
    ],
)
def test_an_ingredient_out_of_range_is_refused(name, value, expected, tmp_path, capsys):
    """The error comes before a work directory is made."""
    (tmp_path / "own.json").write_text(json.dumps({name: value}))
    assert training.run(TrainConfig(recipe=str(tmp_path / "own.json"), workdir=tmp_path / "run", **SMALL)) == 2
    assert re.fullmatch(
        rf"error: --recipe .*own\.json: {name} must be {expected}, got {value}; correct it\n", capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_the_ingredients_of_a_recipe_are_built_in(tmp_path, monkeypatch):
    """The mesh is set, some images are mixed, labels are smoothed, and the opening has pairs of opposite stencils."""
    meshes = []
    monkeypatch.setattr(jax, "set_mesh", meshes.append)
    recipe = dataclasses.replace(RECIPES["strong"], mixed=0.5)
    ready = runs.prepare(TrainConfig(workdir=tmp_path / "run", **SMALL), recipe)
    assert meshes == [ready.mesh]
    state, split = ready.start(), ready.dataset.train
    np.testing.assert_allclose(state.params["opening"]["stencil"].sum(-1), 0, atol=1e-6)
    rows = np.arange(20, dtype=np.int32)
    state = ready.train_steps(state, np.int32(1), *(x[None] for x in (split.images[rows], split.labels[rows], rows)))
    assert state.metrics["correct"] % 1 != 0
    plain = runs.prepare(TrainConfig(workdir=tmp_path / "run", label_smoothing=0.0, **SMALL), recipe)
    assert ready.evaluate(state.variables)["loss"] != plain.evaluate(state.variables)["loss"]


def test_labels_of_pixels_are_not_mixed(tmp_path):
    """The run keeps the recipe unchanged, because the recipe identifies a finished run."""
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3)).astype(np.uint8)
    masks = images[..., 0] % 2
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=masks, test_images=images, test_labels=masks)
    fields = {"steps_per_block": 1, "width": (4, 8), "batch_size": 4, "task": "pixels", "recipe": "strong"}
    ready = runs.prepare(TrainConfig("arrays", data_dir=tmp_path / "a.npz", workdir=tmp_path / "run", **fields))
    assert ready.recipe == RECIPES["strong"]
    ready.train_steps.lower(ready.abstract_state(), 1, images[None], masks[None], np.arange(4, dtype=np.int32)[None])


@pytest.mark.parametrize(("seed", "fine"), [(-1, False), (2**32 - 2, True), (2**32 - 1, False)])
def test_seeds_have_32_bits(seed, fine, tmp_path):
    """Seeds have the 32 bits of JAX's keys; two seeds are seed and seed + 1."""
    config = TrainConfig(seed=seed, seeds=2, workdir=tmp_path / "run", **SMALL)
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match="--seed must be from 0 to 4294967294"):
        runs.prepare(config)


def test_the_best_epoch_needs_labelled_points(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3)).astype(np.uint8)
    masks = images[..., 0] % 2
    pairs = {f"{part}_images": images for part in ("train", "val", "test")}
    pairs |= {"train_labels": masks, "val_labels": np.full_like(masks, 255), "test_labels": masks}
    np.savez(tmp_path / "a.npz", **pairs)
    fields = {"steps_per_block": 1, "width": (4, 8), "batch_size": 4, "task": "pixels", "keep_best": True}
    with pytest.raises(ValueError, match="--keep-best and --patience need validation images with labels, got none"):
        runs.prepare(TrainConfig("arrays", data_dir=tmp_path / "a.npz", workdir=tmp_path / "run", **fields))


def test_flags_of_network_data_and_recipe(tmp_path):
    """Network, data and recipe have their values; a flag overrides the recipe."""
    (tmp_path / "own.json").write_text('{"optimizer": "adamw", "learning_rate": 0.5, "epochs": 7, "whitening": true}')
    fields = {**SMALL, "epochs": None, "recipe": str(tmp_path / "own.json"), "workdir": tmp_path / "run"}
    fields |= {"kernel_size": 5, "flip": "horizontal", "validation_share": 0.3, "train_images": 200}
    ready = runs.prepare(TrainConfig(learning_rate=0.25, **fields))
    assert ready.recipe == Recipe(optimizer="adamw", learning_rate=0.25, epochs=7, whitening=True)
    assert ready.epochs == 7
    shapes = {name: layer["stencil"].shape for name, layer in params(ready).items() if "stencil" in layer}
    assert {shape[:2] for shape in shapes.values()} == {(5, 5)}
    assert params(ready)["classifier"]["kernel"].shape == (2 * 8, 10)
    assert ready.dataset.keeps == ("flip", *datasets.load(ready.config).keeps) == ("flip", "shift", "hide")
    held = datasets.load(ready.config).sample(200).hold_out(0.3)
    assert ready.dataset.digest == held.digest
    assert ready.steps_per_epoch == len(held.train) // 20
    assert description.describe(ready.dataset)["validation"] == len(held.validation)


@pytest.mark.parametrize(
    ("architecture", "grid", "options", "size"),
    [
        ("implicit_rd", (9, 9), {}, 5),
        ("implicit_circulant_rd", (10, 9), {}, 5),
        ("implicit_rd", (9, 8), {}, 3),
        ("implicit_rd", (9, 9), {"width": (4, 8, 16)}, 3),
        ("implicit_rd", (9, 9), {"kernel_size": 2}, 2),
        ("implicit_rd", (99,), {}, 3),
        ("implicit_rd", (9, 9, 9), {}, 3),
        ("implicit_rd", (17, 17), {"width": (4, 8, 16)}, 5),
        ("implicit_rd", (16, 17), {"width": (4, 8, 16)}, 3),
        ("implicit_rd", (9, 9), {"task": "pixels"}, 3),
        ("explicit_rd", (9, 9), {}, 3),
    ],
)
def test_stencils_are_larger_in_implicit_networks_of_images_that_allow_it(architecture, grid, options, size, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, *grid, 3)).astype(np.uint8)
    labels = images[..., 0] % 2 if options.get("task") == "pixels" else np.arange(4) % 2
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    fields = {"steps_per_block": 1, "width": (4, 8), "batch_size": 4, "data_dir": tmp_path / "a.npz", **options}
    config = TrainConfig("arrays", architecture, workdir=tmp_path / "run", grid_axes=len(grid), **fields)
    ready = runs.prepare(config)
    assert ready.config.kernel_size == ready.net.kernel_size == size


def test_programs_that_reproduce_the_paper_have_its_stencils():
    """A flag or a study may state other sizes."""
    assert derived(norm_budget.Config()).kernel_size == 3
    assert {run.kernel_size for run in table2.runs(table2.Config())} == {3}
    assert {run.kernel_size for run in table2.runs(table2.Config(kernel_size=5))} == {5}
    assert derived(norm_budget.Config(), kernel_size=7).kernel_size == 7


def test_the_loss_has_the_flags_and_the_task():
    logits = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    known = {"tags": binary_cross_entropy, "classes": cross_entropy}
    for task, expected in known.items():
        ours = dataset(task=task)
        loss, extra = loss_of(TrainConfig(task=task), 0.2, ours)
        labels = jnp.asarray(ours.train.labels)
        assert_trees_all_equal(loss(logits, labels), expected(logits, labels, smoothing=0.2))
        assert extra == {}
    assert loss_of(TrainConfig(task="values"), 0.1, dataset(task="values")) == (squared_error, {})  # of the recipe
    for task in ("tags", "values"):
        with pytest.raises(ValueError, match=f"--class-weights needs --task classes or pixels, got {task}; leave"):
            loss_of(TrainConfig(task=task, class_weights="auto"), 0.0, dataset(task=task))
    with pytest.raises(ValueError, match="--label-smoothing needs classes, tags or pixels, got --task values"):
        loss_of(TrainConfig(task="values", label_smoothing=0.2), 0.2, dataset(task="values"))


def test_class_weights(tmp_path):
    """`auto` gives classes equal total weights, 1 per image on average; a file gives weights by name, as recorded."""
    loss, extra = loss_of(TrainConfig(class_weights="auto"), 0.0, dataset())
    weights = loss(np.zeros((4, 2), np.float32), jnp.int32([0, 0, 0, 1]))["weight"]
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2], rtol=1e-6)
    assert extra == {"class_weights": pytest.approx([2 / 3, 2])}
    path = tmp_path / "weights.json"
    path.write_text('{"dog": 0.5, "cat": 3}')
    config = TrainConfig(class_weights=str(path), workdir=tmp_path)
    _, extra = loss_of(config, 0.0, dataset())
    assert extra == {"class_weights": [3, 0.5]}
    write_or_compare(config, INGREDIENTS, ABOUT | extra, {}, {})
    path.write_text('{"dog": 0.25, "cat": 3}')
    with pytest.raises(ValueError, match=r"data\.class_weights is \[3, 0\.5\] there and \[3, 0\.25\] here"):
        write_or_compare(config, INGREDIENTS, ABOUT | loss_of(config, 0.0, dataset())[1], {}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"must be auto or a JSON file, got .*weights\.json \(Expecting"),
        ("[1, 2]", "must hold .* for each class, got a difference in no object; the classes are cat, dog"),
        ('{"cat": 1}', "got a difference in dog; the classes are cat, dog"),
        ('{"cat": 1, "dog": 1, "cow": 1}', "got a difference in cow; the classes are cat, dog"),
        ('{"cat": 1, "dog": 0}', "with a positive number for each class, got .*'dog': 0"),
        ('{"cat": 1, "dog": "2"}', "with a positive number for each class, got .*'dog': '2'"),
        ('{"cat": 1, "dog": true}', "with a positive number for each class, got .*'dog': True"),
        ('{"cat": 1, "dog": NaN}', "with a positive number for each class, got .*'dog': nan"),
    ],
)
def test_wrong_class_weights_are_refused(content, message, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"--class-weights .*{message}"):
        loss_of(TrainConfig(class_weights=str(path)), 0.0, dataset())


def test_balanced_weights_improve_the_worst_recall():
    """Trains linear classifiers of digits, where five classes have a tenth of the images of the others."""
    digits = data.load("digits")
    test, recalls = digits.test.images.reshape(-1, 144) / np.float32(255), {None: [], "auto": []}
    for weights, seed in ((weights, seed) for weights in recalls for seed in range(3)):
        order, labels = np.random.default_rng(seed).permutation(len(digits.train)), digits.train.labels
        rows = np.concatenate([order[labels[order] == k][: 130 if k < 5 else 13] for k in range(10)])
        train = data.Split(digits.train.images[rows], labels[rows])
        loss, _ = loss_of(TrainConfig(class_weights=weights), 0.0, dataclasses.replace(digits, train=train))
        found = np.argmax(test @ _linear(loss, train.images.reshape(-1, 144) / np.float32(255), train.labels), axis=-1)
        recalls[weights].append(min(np.mean(found[digits.test.labels == k] == k) for k in range(10)))
    assert np.mean(recalls["auto"]) > np.mean(recalls[None]) + 0.1


def _linear(loss, images, labels):
    """Returns the weights of a linear classifier after 60 steps on all images."""
    optimizer = optax.adam(0.05)

    def mean(weights):
        figures = loss(images @ weights, labels)
        return jnp.average(figures["loss"], weights=figures.get("weight"))

    def step(carry, _):
        updates, state = optimizer.update(jax.grad(mean)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    weights = jnp.zeros((images.shape[1], 10))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=60)[0][0])((weights, optimizer.init(weights)))


@pytest.mark.parametrize("keep_best", [False, True])
def test_validation_images_are_evaluated_as_often_as_test_images(keep_best, tmp_path):
    """With --keep-best, validation images are evaluated after every epoch."""
    fields = {
        **SMALL,
        "train_images": 80,
        "epochs": 3,
        "validation_share": 0.5,
        "evaluate_every": 2,
        "keep_best": keep_best,
    }
    assert training.run(TrainConfig(**fields, workdir=tmp_path)) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert ["validation_loss" in row for row in rows] == [keep_best, True, True]
    assert ["test_loss" in row for row in rows] == [False, True, True]
