"""Runs the benchmark programs in small, and compares the committed pages with their figures."""

import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowcost
from experiments import autotune, compile_for, figure1, throughput
from experiments.common import entry, peak_memory, timing
from experiments.common.files import read_rows
from lowcost import batching, methods, nn


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (autotune, "features rounds"),
        (compile_for, "per_chip size"),
        (figure1, "batch_size size channels kernel_size rounds"),
        (throughput, "batch_size size rounds"),
    ],
)
def test_counts_below_one_are_refused(program, names):
    needed = {"topologies": ("v5e:2x2",)} if program is compile_for else {}
    for name in names.split():
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be at least 1, got 0; increase it"):
            program.main(program.Config(**needed, **{name: 0}))


def test_a_topology_is_needed():
    with pytest.raises(ValueError, match="TOPOLOGIES must name at least one, got none"):
        compile_for.main(compile_for.Config(()))


def test_autotune_writes_a_table_that_auto_reads(tmp_path, monkeypatch):
    """Each row has the time of every method of its operator."""
    out = tmp_path / "methods.json"
    point = {"operator": "depthwise", "dims": 2, "n": 4, "m": 3, "channels": 2}
    monkeypatch.setattr(autotune, "points", lambda short, coarse: [point])
    (row,) = autotune.sequential_rows(autotune.Config(features=256, rounds=1))
    assert set(row["seconds"]) == set(methods.METHODS_OF["depthwise"])
    out.write_text(json.dumps(row))
    monkeypatch.setenv("LOWCOST_METHODS", str(out))
    methods._table.cache_clear()
    try:
        fastest = min(row["seconds"], key=row["seconds"].__getitem__)
        assert {way for _, way in methods.choices("auto", "depthwise", (4, 4), (3, 3), 2)} == {fastest}
    finally:
        methods._table.cache_clear()


def test_autotune_compiles_everything_before_it_times_on_an_accelerator(monkeypatch):
    """The table of an accelerator has the points and batches of the estimates, and the time of each working method."""
    calls, points = [], list(autotune.points(short=True, coarse=True))
    monkeypatch.setattr(
        autotune.tuning, "prepared", lambda point, ways, batch: calls.append("compile") or {w: w for w in ways}
    )
    monkeypatch.setattr(autotune.tuning, "timed", lambda ways, rounds: calls.append("time") or dict.fromkeys(ways, 1.0))
    monkeypatch.setattr(autotune, "_works", lambda way: way[0] != "fft")
    rows = list(autotune.precompiled_rows(autotune.Config(short=True, features=2**10)))
    assert calls == ["compile"] * len(points) + ["time"] * len(points)
    assert all(row["seconds"].keys() == {*methods.METHODS_OF[row["operator"]]} - {"fft"} for row in rows)
    assert {row["batch"] for row in rows} == {8}


def test_autotune_covers_all_operators_and_dimensions():
    """The points have one to three dimensions, no stencil exceeds its grid, and no point occurs twice."""
    points = list(autotune.points())
    assert {point["operator"] for point in points} == {"diffusion", "depthwise", "circulant", "coupled", "linear_mix"}
    assert {point["dims"] for point in points} == {1, 2, 3}
    assert all(point["m"] <= point["n"] for point in points)
    assert len({tuple(point.items()) for point in points}) == len(points)


@pytest.mark.parametrize("chip", ["cpu", "h100"])
def test_the_committed_tables_are_complete(chip):
    """Each has a row for every point."""
    rows = read_rows(Path(methods.__file__).with_name(f"methods_{chip}.json"))
    points = list(autotune.points(coarse=chip != "cpu"))
    assert [{name: row[name] for name in point} for point, row in zip(points, rows, strict=True)] == points


def test_figure1_in_small(tmp_path, monkeypatch, capsys):
    """Writes four files with a ratio for every operator, point and mode, against our own K if PyTorch is missing."""
    measured = []

    def measure_once(point, rounds, measure=figure1.measure):
        """Measures three operators at one point and reuses the figures, because each takes seconds to compile."""
        if not measured:
            few = ("depthwise matmul", "implicit FFT", "circulant FFT")
            with monkeypatch.context() as patch:
                patch.setattr(figure1, "OPERATORS", {name: figure1.OPERATORS[name] for name in few})
                measured[:] = measure(point, rounds)
            assert [row["operator"] for row in measured] == list(few)
        return [{**measured[i % 3], **point, "operator": name} for i, name in enumerate(figure1.OPERATORS)]

    monkeypatch.setattr(figure1, "pytorch", lambda *arguments: {})
    monkeypatch.setattr(figure1, "measure", measure_once)
    out = tmp_path / "new" / "figure1"
    figure1.main(figure1.Config(batch_size=4, size=8, channels=4, rounds=1, short=True, out=out))
    rows = read_rows(out.with_suffix(".jsonl"))
    assert {row["operator"] for row in rows} == set(figure1.OPERATORS)
    assert {row["mode"] for row in rows if row["dims"] == 2} == {"forward", "gradient"}
    assert {row["size"] for row in rows} == {8, 16, 32, 128}
    assert all(row["ratio"] > 0 and row["opponent"] == "lowcost" for row in rows)
    page = out.with_suffix(".md").read_text("utf-8")
    assert all(f"| {name} |" in page for name in figure1.OPERATORS)
    assert "| 8x8x8 | depthwise direct |" in page
    assert page == figure1.markdown(rows)
    assert all((tmp_path / "new" / name).stat().st_size > 10_000 for name in ("figure1.png", "figure1_seconds.png"))
    assert "circulant matmul" in capsys.readouterr().out


def test_where_a_ratio_crosses_one():
    """Interpolates in log-log scale between the last ratio below 1 and the next; the better method counts."""
    base = {"dims": 2, "size": 8, "kernel_size": 3, "mode": "forward"}

    def rows(ratios):
        return [
            {**base, "operator": f"depthwise {method}", "channels": c, "ratio": share * r}
            for c, r in zip((64, 16, 256), (ratios[1], ratios[0], ratios[2]), strict=True)
            for method, share in (("FFT", 1), ("matmul", 0.1))
        ]

    assert figure1.crossed_at(rows((0.5, 2, 8)), "depthwise", "forward") == "32"
    assert figure1.crossed_at(rows((2, 2, 2)), "depthwise", "forward") == "below 16"
    assert figure1.crossed_at(rows((2, 2, 0.5)), "depthwise", "forward") == "above 256"


def test_what_is_compared_alternates():
    """Each round calls each function twice and times the second call; one further round warms up."""
    calls = []
    seconds = timing.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "a", "b", "b"] * 4
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize("architecture", nn.ARCHITECTURES)
@pytest.mark.parametrize("train", [False, True])
def test_the_pytorch_networks_are_the_same_functions(architecture, train):
    """Equal weights and statistics give equal logits to 1e-4, in training and at evaluation."""
    torch = pytest.importorskip("torch")
    from experiments.common.torch_networks import Network

    images = np.random.default_rng(0).random((6, 16, 16, 3), np.float32)
    net = nn.network(architecture, (8, 16), 10)
    variables = net.init(jax.random.key(0), images)
    _, statistics = net.apply(variables, images, train=True, mutable=["batch_stats"])
    variables = {"params": variables["params"], **statistics}
    ours, _ = net.apply(variables, images, train=train, mutable=["batch_stats"])
    theirs = Network(architecture, variables).train(train)
    logits = theirs(torch.tensor(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits, ours, atol=1e-4, rtol=1e-4)


def test_throughput_compares_the_same_function():
    """A difference of more than 1e-4 of the largest logit is an error; a smaller one is not."""
    logits = np.array([[3.0, -20.0]])
    throughput.check_logits("resnet", logits, logits + 1e-3)
    with pytest.raises(ValueError, match=r"must have our logits, got a difference of 3.0e-03"):
        throughput.check_logits("resnet", logits, logits + 3e-3)


@pytest.mark.parametrize("name", ["fully_coupled", "linear_mix"])
def test_operations_are_counted_for_every_image(name):
    """Twice as many images have twice the operations, although a CPU computes them in a loop."""
    shapes = {"fully_coupled": [(3, 3, 32, 32)], "linear_mix": [(3, 3, 2), (2, 2)]}[name]
    weights = [np.ones(shape, np.float32) for shape in shapes]

    def operations(images):
        def loss(weights, y):
            return jnp.vdot(getattr(lowcost, name)(*weights, y, method="direct"), y)

        y = np.ones((images, 8, 8, shapes[0][-1]), np.float32)
        return jax.jit(jax.grad(loss, (0, 1))).lower(weights, y).compile().cost_analysis()["flops"]

    with batching.without_loops():
        assert 1.9 < operations(16) / operations(8) < 2.1


def test_many_calls_are_timed_together_on_an_accelerator(monkeypatch):
    """As many as take `ROUND_SECONDS`; the seconds are those of one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    calls = []
    seconds = timing.interleave({"a": lambda: calls.append(time.sleep(0.002))}, 1)
    assert 5 <= len(calls) <= 14
    assert 0.002 <= seconds["a"] < 0.01


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_measuring_process_keeps_freed_memory():
    """The process reuses it as its parent does: the second of two arrays causes no page faults."""
    count = "__import__('resource').getrusage(0).ru_minflt"
    array = "__import__('numpy').ones(2**24) is None"  # 128 MiB, freed at once
    _, before, _, after = entry.in_a_process(eval, f"({array}, {count}, {array}, {count})")
    assert after - before < 10


def test_memory_without_its_peak_in_the_status_of_the_process(tmp_path, monkeypatch):
    """A value is returned even if the status lacks the peak, as in some sandboxes."""
    (tmp_path / "status").write_text("VmSize: 10 kB\n")
    monkeypatch.setattr(peak_memory, "Path", lambda _: tmp_path / "status")
    assert peak_memory.of_this_process() > 10_000_000
