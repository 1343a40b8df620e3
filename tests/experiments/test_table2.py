"""Tests the program of Table 2: it runs exactly the paper's rows, each once, with one line per run."""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from experiments import table2
from experiments.common import entry, table2_page
from experiments.common.config import TrainConfig
from experiments.common.files import read_rows
from experiments.common.recipes import RECIPES
from experiments.common.workdir import finished, write_or_compare
from lowcost.nn import network, network_cost


def result(run, accuracy=0.5, std=None):
    """Returns what training writes to result.json."""
    return {
        "dataset": run.dataset,
        "architecture": run.architecture,
        "width": run.width,
        "recipe": run.recipe,
        "weights": 101_066,
        "epochs": run.epochs,
        "seed": run.seed,
        "seeds": run.seeds,
        "test_accuracy": accuracy,
        "test_accuracy_std": std,
        "train_images": 50_000,
        "images_per_second": 300.0,
        "train_seconds": 1234.5,
        "device": "2 x cpu",
        "digest": str(run.directory()),
    }


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by writing a result; returns the list of started runs."""
    started = []

    def train(run):
        started.append(run)
        write_or_compare(run, dataclasses.asdict(RECIPES[run.recipe]), {}, {}, {})
        (run.directory() / "result.json").write_text(json.dumps(result(run, 0.5 + 0.01 * len(started), 0.002)))
        return 0

    monkeypatch.setattr(table2, "train", train)
    return started


def test_all_rows_of_the_paper_and_no_others():
    """The rows are six architectures in two widths on three data sets."""
    everything = table2.Config(datasets=("cifar10", "cifar100", "stl10"), widths=("A", "B", "C"), recipe="paper")
    runs = list(table2.runs(everything))
    assert len(runs) == 36
    assert len({run.directory() for run in runs}) == 36
    assert all(run.epochs == 300 for run in runs)
    assert {run.width for run in runs if run.dataset == "cifar100"} == {"B", "C"}
    assert table2_page.paper("cifar100", "linear_mix", "C") == 69.2
    assert table2_page.paper("cifar100", "linear_mix", "A") is None


def test_finished_runs_are_skipped_and_lines_stay(tmp_path, trained):
    """A second call trains nothing and writes nothing twice; other runs' lines are kept."""
    config = table2.Config(
        datasets=("cifar10",), architectures=("explicit_rd", "mobilenet"), workdir=tmp_path, out=tmp_path / "t"
    )
    assert table2.main(config) == 0
    assert table2.main(config) == 0
    assert [run.architecture for run in trained] == ["explicit_rd", "mobilenet"]
    assert table2.main(dataclasses.replace(config, architectures=("resnet",), epochs=2)) == 0
    assert table2.main(dataclasses.replace(config, architectures=("explicit_rd",), kernel_size=5)) == 0
    rows = read_rows(config.out.with_suffix(".jsonl"))
    assert [(row["architecture"], row["epochs"], row["kernel_size"]) for row in rows] == [
        ("explicit_rd", 30, 3),
        ("mobilenet", 30, 3),
        ("resnet", 2, 3),
        ("explicit_rd", 30, 5),
    ]
    page = config.out.with_suffix(".md").read_text()
    assert page == table2_page.markdown(rows, "t")
    assert "| explicit_rd | A | 101,066 | 30 | 51.00 ± 0.20 % | 88.9 % |" in page
    assert "Made by `python -m experiments.table2 cifar10 --architectures resnet --widths A --epochs 2`." in page
    assert "cifar10, original, 2 epochs" in page
    assert page.count("stencils of 5 points per axis") == 1
    assert config.out.with_suffix(".png").stat().st_size > 10_000


def test_a_run_of_another_recipe_or_other_images_is_refused(tmp_path, trained, monkeypatch):
    config = table2.Config(
        datasets=("folder",),
        data_dir=tmp_path / "a",
        architectures=("resnet",),
        workdir=tmp_path,
        out=tmp_path / "t",
    )
    assert table2.main(config) == 0
    with pytest.raises(ValueError, match=r"data_dir is .*/a there and .*/b here"):
        table2.main(dataclasses.replace(config, data_dir=tmp_path / "b"))
    monkeypatch.setitem(RECIPES, "fast", dataclasses.replace(RECIPES["fast"], stencil_rate=0.25))
    with pytest.raises(ValueError, match=r"ingredients.stencil_rate is 0.3 there and 0.25 here"):
        table2.main(config)
    assert len(trained) == len(read_rows(config.out.with_suffix(".jsonl"))) == 1


def test_the_description_of_images_can_be_added_later(tmp_path, trained):
    """The line of a finished run takes a new description and keeps it; only the user's own images may have one."""
    config = table2.Config(datasets=("folder",), architectures=("resnet",), workdir=tmp_path, out=tmp_path / "t")
    for words in "", "small images", "":
        assert table2.main(dataclasses.replace(config, images=words, like="cifar10" if words else "")) == 0
    (row,) = read_rows(config.out.with_suffix(".jsonl"))
    assert (row["images"], row["like"], len(trained)) == ("small images", "cifar10", 1)
    with pytest.raises(ValueError, match="are for folder or arrays alone"):
        table2.main(table2.Config(datasets=("folder", "cifar10"), widths=("A",), like="cifar10"))


def test_a_newer_run_takes_the_place_of_an_older_one(tmp_path, trained):
    """A new result of the same configuration replaces the older line."""
    config = table2.Config(architectures=("resnet", "mobilenet"), workdir=tmp_path, out=tmp_path / "t")
    assert table2.main(config) == 0
    assert table2.main(dataclasses.replace(config, architectures=("resnet",), workdir=tmp_path / "new")) == 0
    rows = read_rows(config.out.with_suffix(".jsonl"))
    assert [(row["architecture"], row["test_accuracy"]) for row in rows] == [("resnet", 0.53), ("mobilenet", 0.52)]


def test_a_run_of_moved_images_resumes(tmp_path):
    """The folder of the images is not compared, and the run is recognised as finished."""
    run = TrainConfig(dataset="folder", data_dir=tmp_path / "a", epochs=1, workdir=tmp_path)
    recipe = dataclasses.asdict(RECIPES["paper"])
    write_or_compare(run, recipe, {}, {}, {})
    moved = dataclasses.replace(run, data_dir=tmp_path / "b")
    write_or_compare(moved, recipe, {}, {}, {})
    (tmp_path / "result.json").write_text("{}")
    assert finished(moved, recipe) == {}


def test_a_network_that_diverges_keeps_no_other_from_its_run(tmp_path, trained, monkeypatch):
    train = table2.train
    monkeypatch.setattr(table2, "train", lambda run: 3 if run.architecture == "explicit_rd" else train(run))
    config = table2.Config(architectures=("explicit_rd", "mobilenet"), workdir=tmp_path, out=tmp_path / "t")
    assert table2.main(config) == 3
    assert [row["architecture"] for row in read_rows(config.out.with_suffix(".jsonl"))] == ["mobilenet"]


def test_a_grid_without_a_run_is_refused():
    with pytest.raises(ValueError, match="cifar100 B/C"):
        table2.main(table2.Config(datasets=("cifar100",)))


def test_it_ends_with_the_status_of_the_run_that_ended(tmp_path, monkeypatch):
    """Interrupted training ends the program, and no row is written."""
    monkeypatch.setattr(table2, "train", lambda run: 143)
    config = table2.Config(workdir=tmp_path, out=tmp_path / "t")
    assert table2.main(config) == 143
    assert not config.out.with_suffix(".jsonl").exists()


def test_training_gets_the_runs_flags(monkeypatch, tmp_path):
    """The command of a run is read back as that run; a run that a signal ended gives 128 + its number."""
    commands = []

    class Process:
        def __init__(self, command):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def wait(self):
            return -15

    monkeypatch.setattr("subprocess.Popen", Process)
    config = table2.Config(
        datasets=("folder",),
        data_dir=tmp_path,
        epochs=5,
        seeds=3,
        train_images=100,
        batch_size=96,
        image_size=64,
        download=True,
        architectures=("resnet",),
    )
    (run,) = table2.runs(config)
    assert table2.train(run) == 143
    assert tyro.cli(TrainConfig, args=commands[0][3:]) == run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_reaches_the_training(monkeypatch, tmp_path, name):
    """The training process (a shell) gets the signal and sets the status; then the old handler is restored."""
    number, before = signal.Signals[name], lambda *_: None
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntrap 'exit 42' {name[3:]}\nsleep 0.3; kill -{name[3:]} $PPID\nsleep 3 & wait\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    outside = signal.signal(number, before)
    try:
        assert table2.train(TrainConfig(workdir=tmp_path)) == 42
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)


def test_an_interrupt_of_this_program_alone_stops_the_training(monkeypatch, tmp_path):
    """`kill -INT` reaches this program alone, whereas Ctrl-C in a terminal reaches both."""
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/stopped; exit 1' USR1\nsleep 0.3; kill -INT $PPID\nsleep 3 & wait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert table2.train(TrainConfig(workdir=tmp_path)) == 130
    assert (tmp_path / "stopped").exists()


def test_the_plan_is_for_square_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 9, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(40) % 2)
    config = table2.Config(("arrays",), data_dir=tmp_path / "a.npz", workdir=tmp_path, dry_run=True)
    with pytest.raises(ValueError, match="--dry-run is for square images, got arrays with 8x9 points; use"):
        table2.main(config)
    with pytest.raises(ValueError, match="--epochs must be at least 1, got 0"):
        table2.main(dataclasses.replace(config, epochs=0))


def test_runs_with_other_flags_have_other_names():
    """Runs with the defaults keep their short names."""
    changes = {"batch_size": 96, "train_images": 40, "kernel_size": 5, "length": 20}
    for given, end in (({}, ""), (changes, "-batch96-40images-stencil5-20points")):
        (run,) = table2.runs(table2.Config(("arrays",), ("resnet",), seed=3, **given))
        assert run.directory().name == f"arrays-resnet-A-fast-30epochs{end}-seed3x1"


def test_digits_need_no_folder():
    """The other data sets of the same table get the folder."""
    sets, any_folder = ("digits", "folder", "cifar10"), Path("any")
    configs = list(table2.runs(table2.Config(sets, ("resnet",), data_dir=any_folder, download=True)))
    assert [run.data_dir for run in configs] == [None, any_folder, any_folder]
    assert [run.download for run in configs] == [False, False, True]


def test_the_plan_counts_what_is_missing(tmp_path, monkeypatch, capsys):
    """Hours follow from a measured speed, multiply-adds from the networks' cost; finished epochs are subtracted."""
    monkeypatch.setattr(entry, "in_a_process", lambda *call: 100.0)
    config = table2.Config(architectures=("implicit_rd", "resnet"), workdir=tmp_path, dry_run=True)
    first, _ = table2.runs(config)
    first.directory().mkdir()
    lines = "".join(f'{{"epoch": {epoch}}}\n' for epoch in range(1, 13))
    (first.directory() / "metrics.jsonl").write_text(lines + '{"epo')  # a kill has cut the last one short
    assert table2.main(config) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "12/30 epochs of 50,000 images, 1 seed: 2.5 h" in lines[0]
    assert "0/30 epochs of 50,000 images, 1 seed: 4.2 h" in lines[1]
    assert lines[2].startswith("6.7 h in all")
    forward = [network_cost(network(name, "A", 10), (32, 32, 3)).multiply_adds for name in config.architectures]
    assert f"{3 * 50_000 * (18 * forward[0] + 30 * forward[1]):.1e} multiply-adds" in lines[2]
