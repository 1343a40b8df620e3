"""Tests training: sharded steps equal those on one device, compile once, and resume exactly."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import QUICK
from rich.console import Console

from experiments.common.recipes import RECIPES, Recipe
from lowcost import fully_coupled
from lowcost.data.augment import cutmix
from lowcost.nn import network
from lowcost.scaling import to_unit_range
from lowcost.train.checkpoint import Checkpoints
from lowcost.train.feed import feed
from lowcost.train.interruption import Interruption
from lowcost.train.loop import evaluate_all, fit
from lowcost.train.losses import cross_entropy, mixed, pixel_cross_entropy, squared_error
from lowcost.train.mesh import data_mesh, over_batch, replicated
from lowcost.train.metrics_log import MetricsLog, repaired_rows
from lowcost.train.state import create_state
from lowcost.train.step import Draw, make_eval_step, make_train_step, mean_metrics, repeat

NET = network("implicit_rd", (2, 4), 3, steps_per_block=1)
OPTIMIZER = optax.adam(1e-2)
SHAPE = (12, 8, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, *SHAPE), np.uint8)
LABELS = RNG.integers(0, 3, 32, np.int32)
MIXING = Recipe(mixed=0.5)
TASKS = {
    "classes": (NET, LABELS, ("loss", "correct"), {}),
    "mixed": (
        NET,
        LABELS,
        ("loss", "correct"),
        {"loss": functools.partial(mixed, loss=cross_entropy), "augment_labels": MIXING.label_mixing(SHAPE[:-1])},
    ),
    "pixels": (
        network("implicit_rd", (2, 4), 3, steps_per_block=1, head="pixels", decoder=True),
        RNG.choice(np.array([0, 1, 2, 255], np.uint8), (32, *SHAPE[:-1])),
        {"loss": (), "weight": (), "confusion": (3, 3)},
        {"loss": pixel_cross_entropy, "augment_labels": RECIPES["paper"].label_augmentation(("flip", "shift"), 3)},
    ),
}
"""Task → network, labels, figures of the loss, and options of the train step."""
BATCH, STEPS_PER_EPOCH = 8, 4


TRACES = []


def augment(images, draw):
    return images + 0.1 * jax.random.normal(draw.step, images.shape)


def counting(images, draw):
    """Augments images and records each trace of the train step."""
    TRACES.append(images.shape)
    return augment(images, draw)


@functools.cache
def programs(devices, task="classes"):
    """Returns the mesh over the given number of devices, the jitted training and evaluation, and an initial state."""
    net, _, figures, options = TASKS[task]
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
    step = make_train_step(net, OPTIMIZER, counting, STEPS_PER_EPOCH, average=0.9, **options)
    create = functools.partial(create_state, net, OPTIMIZER, image_shape=SHAPE, average=True, figures=figures)
    state = jax.jit(create, out_shardings=replicated(mesh))(jax.random.key(0))
    eval_step = make_eval_step(net, options.get("loss", cross_entropy))
    return mesh, jax.jit(repeat(step)), jax.jit(eval_step), state


def rows(step):
    return np.arange(BATCH) + step % 4 * BATCH


def feeding(mesh, task="classes"):
    return feed(IMAGES, TASKS[task][1], rows, mesh, steps_max=3, resident=False)


def run(devices, steps, dispatch=1, task="classes"):
    mesh, step, _, state = programs(devices, task)
    batches = feeding(mesh, task)
    with jax.set_mesh(mesh):
        for i in range(0, steps, dispatch):
            n = min(dispatch, steps - i)
            state = jax.block_until_ready(step(state, n, *batches(i, n, 0)))
    return state


@pytest.mark.parametrize("task", TASKS)
def test_four_devices_do_what_one_does(task):
    """Gradients, normalisation statistics and metrics are those of the whole batch."""
    one, four = run(1, 3, task=task), run(4, 3, task=task)
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(four), rtol=2e-3, atol=2e-5)


def test_the_statistics_are_those_of_the_global_batch():
    """Running mean after one step = (1 - momentum) · mean of the opening's output over the whole batch."""
    before, after = run(4, 0), run(4, 1)
    draw = Draw(None, jax.random.fold_in(jax.random.key(0), 0), None, None)
    inputs = augment(to_unit_range(jnp.asarray(IMAGES[:BATCH])), draw)
    opened = fully_coupled(jax.device_get(before.params["opening"]["stencil"]), inputs)
    running = after.batch_stats["opening"]["normalize"]["mean"]
    np.testing.assert_allclose(running, 0.1 * opened.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_what_an_augmentation_is_told():
    """It gets the keys of the run and of the step, the images' indices in the data set, and the epoch."""
    key, seen = jax.random.key(5), []

    def augment(images, draw):
        seen.append(draw)
        raise InterruptedError

    step = make_train_step(NET, OPTIMIZER, augment, steps_per_epoch=3)
    state = create_state(NET, OPTIMIZER, key, SHAPE)
    for i in (0, 2, 3, 7):
        with pytest.raises(InterruptedError):
            step(state.replace(step=jnp.int32(i)), IMAGES[:8], LABELS[:8], rows(1))
        draw = seen[-1]
        for ours, theirs in ((draw.run, key), (draw.step, jax.random.fold_in(key, i))):
            np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))
        np.testing.assert_array_equal(draw.indices, rows(1))
        assert draw.epoch == i // 3


def test_a_run_compiles_once():
    run(2, 2)
    before = len(TRACES)
    run(2, 3)
    assert before > 0
    assert len(TRACES) == before


@pytest.mark.parametrize("dispatch", [2, 3])
def test_how_a_run_is_cut_into_dispatches_changes_no_bit(dispatch):
    chex.assert_trees_all_equal(run(2, 5), run(2, 5, dispatch))


def test_the_average_is_that_of_the_steps():
    """a ← d·a + (1 - d)·variables with d = min(0.9, (1 + t) / (10 + t)), of weights and statistics alike."""
    states = [run(1, steps) for steps in range(4)]
    average = {"params": states[0].params, "batch_stats": states[0].batch_stats}
    for t, state in enumerate(states[1:]):
        d = (1 + t) / (10 + t)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda a, x, d=d: d * a + (1 - d) * x, average, variables)
    chex.assert_trees_all_close(states[-1].average, average, rtol=1e-5, atol=1e-6)
    assert states[-1].variables is states[-1].average


def test_many_seeds_are_each_what_it_is_alone():
    """`vmap` over seeds gives the initial weights, augmentation, steps and evaluation of each seed alone."""
    mesh, alone, eval_alone, _ = programs(1)
    step = jax.vmap(make_train_step(NET, OPTIMIZER, augment, STEPS_PER_EPOCH, average=0.9))
    keys = [jax.random.key(seed) for seed in (3, 4)]
    create = functools.partial(create_state, NET, OPTIMIZER, image_shape=SHAPE, average=True)
    states, both = [jax.jit(create)(key) for key in keys], jax.jit(jax.vmap(create))(jnp.stack(keys))
    batches = [rows(0), rows(1)]
    with jax.set_mesh(mesh):
        for i, own in enumerate(batches):
            states[i] = alone(states[i], 1, *[x[None] for x in (IMAGES[own], LABELS[own], own)])
        both = jax.jit(repeat(step))(
            both, 1, *[np.stack([x[own] for own in batches])[None] for x in (IMAGES, LABELS)], np.stack(batches)[None]
        )
        expected = jax.tree.map(lambda *x: np.stack(x), *states)
        chex.assert_trees_all_close(jax.device_get(both), jax.device_get(expected), rtol=1e-4, atol=1e-5)
        evaluate = functools.partial(evaluate_all, images=IMAGES, labels=LABELS, batch_size=16, mesh=mesh)
        together = evaluate(jax.jit(jax.vmap(make_eval_step(NET), in_axes=(0, None, None, None))), both.variables)
        for i, state in enumerate(states):
            for name, value in evaluate(eval_alone, state.variables).items():
                np.testing.assert_allclose(together[name][i], value, rtol=1e-4)


def test_metrics_start_again_with_the_epoch():
    metrics = run(1, STEPS_PER_EPOCH + 1).metrics
    assert metrics["count"] == BATCH
    assert mean_metrics(metrics)["loss"] > 0


def test_evaluation_counts_every_image_once():
    """The last, smaller batch is included, for any batch size."""
    mesh, _, eval_step, state = programs(1)
    results = [
        evaluate_all(eval_step, state.average, IMAGES[:29], LABELS[:29], batch_size=size, mesh=mesh) for size in (29, 8)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.jit(NET.apply)(variables, to_unit_range(jnp.asarray(IMAGES[:29])))
    assert results[0]["accuracy"] == pytest.approx(float(np.mean(np.argmax(logits, -1) == LABELS[:29])))


class _StopAfter(Interruption):
    """Requests a stop after the given number of queries."""

    def __init__(self, looks):
        self._looks = looks

    def stop_requested(self):
        self._looks -= 1
        return self._looks < 0


@pytest.mark.parametrize(
    ("task", "stop_after", "steps_max"),
    [*(("classes", *x) for x in ((1, 1), (3, 3), (4, 1), (6, 3), (10, 1))), ("pixels", 6, 3)],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path, task, stop_after, steps_max):
    """State and metrics are equal bit for bit if it stops in an epoch, at its end, or in the evaluation."""

    mesh, step, eval_step, initial = programs(2, task)
    labels = TASKS[task][1]

    def train(workdir, interruption):
        checkpoints = Checkpoints(workdir / "checkpoints")
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), initial)
        begin, state, *_ = checkpoints.restore_newest(like) or (0, initial)
        path = workdir / "metrics.jsonl"
        log = MetricsLog(repaired_rows(path, begin // STEPS_PER_EPOCH), path)

        def evaluate(state):
            return evaluate_all(
                eval_step, state.variables, IMAGES, labels, batch_size=16, mesh=mesh, interruption=interruption
            )

        with jax.set_mesh(mesh):
            state = fit(
                state,
                step,
                feeding(mesh, task),
                evaluate,
                steps_per_epoch=STEPS_PER_EPOCH,
                epochs=2,
                steps_max=steps_max,
                log=log,
                checkpoints=checkpoints,
                interruption=interruption,
                console=Console(quiet=True),
            )
        checkpoints.close()
        rows = [{k: v for k, v in row.items() if "second" not in k and "share" not in k} for row in log.rows]
        return jax.device_get(state), rows

    whole = train(tmp_path / "whole", Interruption())
    train(tmp_path / "halves", _StopAfter(stop_after))
    halves = train(tmp_path / "halves", Interruption())
    chex.assert_trees_all_equal(whole[0], halves[0])
    assert whole[1] == halves[1]
    assert len(whole[1]) == 2


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3, "x"', [1]),  # cut short, and an epoch beyond the checkpoint
        ('{"epoch": 1}', [1]),  # the end of the line is missing, and the next row must not join it
        ('5\n{}\nnoise\n{"epoch": 1}\n', [1]),
        ("", []),
    ],
)
def test_the_log_survives_a_kill(tmp_path, text, epochs):
    """metrics.jsonl holds whole rows up to the checkpoint, and accepts the next row."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    log = MetricsLog(repaired_rows(path, 1), path)
    assert [row["epoch"] for row in log.rows] == epochs
    log.append({"epoch": 2})
    assert [row["epoch"] for row in repaired_rows(path, 2)] == [*epochs, 2]


def test_a_state_for_another_loss_is_refused():
    step = make_train_step(NET, OPTIMIZER, augment, STEPS_PER_EPOCH, loss=squared_error)
    state = create_state(NET, OPTIMIZER, jax.random.key(0), SHAPE)
    message = r"figures of the loss, {'loss': \(\)}, got {'correct': \(\), 'loss': \(\)}; make .*figures={'loss': \(\)}"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, state, IMAGES[:8], np.zeros((8, 3), np.float32), rows(0))


def test_devices_that_do_not_divide_the_batch_are_an_error():
    with pytest.raises(ValueError, match=r"batch_size must be divisible by the 4 devices .* got 10; use e\.g\. 8"):
        data_mesh(10)


@pytest.mark.parametrize(("batch", "devices"), [(16, 4), (10, 2), (7, 1)])
def test_a_trained_network_runs_on_devices_that_divide_its_batch(batch, devices):
    assert data_mesh(batch, all_devices=False).size == devices


def test_mixing_moves_one_image_per_device():
    """The partner of a device's last image is the first one of the next device."""
    mesh = data_mesh(16)
    with jax.set_mesh(mesh):
        images = jax.ShapeDtypeStruct((16, *SHAPE), np.float32, sharding=over_batch(mesh))
        compiled = jax.jit(cutmix).lower(jax.random.key(0), images).compile().as_text()
    assert re.findall(r"= f32(\[.*?\]).* collective-permute\(", compiled) == ["[1,12,8,1]"]
    assert "all-" not in compiled


@pytest.mark.parametrize(
    ("architecture", "on_cpu", "head"),
    [
        *(("implicit_rd", True, head) for head in ("class", "pixels")),
        *((architecture, False, "class") for architecture in ("explicit_rd", "resnet", "circulant_rd")),
    ],
)
def test_two_seeds_gather_nothing(architecture, on_cpu, head, monkeypatch):
    """The compiled steps of the fast recipe hold no gather, by the methods of "auto" on a CPU and an accelerator."""
    if not on_cpu:
        monkeypatch.setenv("LOWCOST_CHIP", "h100")
    mesh, recipe = data_mesh(8), RECIPES["fast"]
    width = (2, 4) if architecture == "implicit_rd" else (2,)  # the layer between two blocks is that of all networks
    net, optimizer = network(architecture, width, 3, steps_per_block=1, head=head), recipe.transformation(2, 4)
    _, labels, figures, options = TASKS["pixels" if head == "pixels" else "classes"]
    augment = recipe.augmentation(("flip", "shift", "hide"))
    step = make_train_step(net, optimizer, augment, 4, average=recipe.average, **options)
    keys = jnp.stack([jax.random.key(0)] * 2)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        create = jax.vmap(lambda key: create_state(net, optimizer, key, (12, 8, 3), average=True, figures=figures))
        state = jax.tree.map(lambda x: placed(x, replicated(mesh)), jax.eval_shape(create, keys))
        shapes = [((12, 8, 3), np.uint8), (labels.shape[1:], labels.dtype), ((), np.int32)]
        batches = [placed(jax.ShapeDtypeStruct((3, 2, 8, *s), t), over_batch(mesh, 2)) for s, t in shapes]
        steps = jax.jit(repeat(jax.vmap(step)), out_shardings=replicated(mesh), compiler_options=QUICK)
        compiled = steps.lower(state, np.int32(1), *batches).compile().as_text()
    assert "all-reduce" in compiled
    for gather in "all-gather", "all-to-all", "collective-permute":
        assert gather not in compiled
