"""Every page of results shows the committed figures, and the index links every page."""

import dataclasses
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from faults import table as faults

from experiments import (
    ablation,
    compile_for,
    deploy,
    depth,
    figure1,
    norm_budget,
    reach,
    robustness,
    segmentation,
    signals,
    stability,
    table1,
    throughput,
    transfer,
    volumes,
)
from experiments.common import table2_page
from experiments.common.config import TrainConfig, flags
from experiments.common.files import read_rows
from experiments.common.results import Results, source

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
PAGES = {
    **{module.__name__.rpartition(".")[2]: module for module in (ablation, deploy, depth, figure1, robustness)},
    **{module.__name__.rpartition(".")[2]: module for module in (compile_for, stability, table1, throughput, transfer)},
    "ablation_circulant": ablation,
    "ablation_distillation": ablation,
    "ablation_reach": ablation,
    "norm_budget": norm_budget,
    "norm_budget_cifar": SimpleNamespace(markdown=partial(norm_budget.markdown, name="norm_budget_cifar")),
    "reach": reach,
    "segmentation": segmentation,
    "signals": signals,
    "volumes": volumes,
    "table2": table2_page,
    "faults": faults,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_rendered_from_its_figures(name):
    assert (RESULTS / f"{name}.md").read_text("utf-8") == PAGES[name].markdown(read_rows(RESULTS / f"{name}.jsonl"))


def test_the_index_links_every_page():
    linked = re.findall(r"^\| \[[^]]+\]\((\w+)\.md\)", (RESULTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(linked) == sorted(PAGES)
    assert {path.stem for path in RESULTS.glob("*.md")} - {"README"} == set(PAGES)
    assert {path.stem for path in RESULTS.glob("*.jsonl")} == set(PAGES)


def test_the_source_of_figures_names_each_device_and_commit_once():
    rows = [{"device": "2 x cpu", "commit": "b"}, {"device": "2 x cpu", "commit": "a"}, {"commit": None}]
    assert source(rows, "x") == "Figures: [x.jsonl](x.jsonl), measured on 2 x cpu at commit a and b."
    assert source([{"commit": "a"}], "x") == "Figures: [x.jsonl](x.jsonl), computed at commit a."
    assert source([{}], "x") == "Figures: [x.jsonl](x.jsonl)."


def test_a_page_names_the_flags_that_were_given(tmp_path, capsys):
    """It names no other flags, and its files have the name that the user chose."""
    table1.main(table1.Config(size=16, out=tmp_path / "small"))
    page = (tmp_path / "small.md").read_text("utf-8")
    assert "\nMade by `python -m experiments.table1 --size 16`.\n" in page
    assert "[small.jsonl](small.jsonl)" in page
    assert page == table1.markdown(read_rows(tmp_path / "small.jsonl"), "small")
    assert "Table 1" in capsys.readouterr().out


def test_flags_mean_the_configuration_that_they_are_made_of():
    config = throughput.Config(architectures=("resnet", "mobilenet"), size=16, compile_pytorch=False)
    assert tyro.cli(throughput.Config, args=flags(config)) == config
    assert flags(throughput.Config()) == []


def test_rows_that_are_not_complete_make_no_page(tmp_path):
    """The file of figures holds them with the flags, so that a stopped program keeps its measurements."""
    config, drawn = table1.Config(size=16, out=tmp_path / "figures"), []
    results = Results(config, lambda rows, name: f"{name}: {len(rows)}", lambda rows, path: drawn.append(path))
    results.add([{"a": 1}], complete=False)
    assert read_rows(tmp_path / "figures.jsonl") == [{"flags": "--size 16", "a": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.jsonl"]
    results.add([{"a": 2}])
    assert (tmp_path / "figures.md").read_text() == "figures: 2"
    assert drawn == [tmp_path / "figures.png"]


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Results(table1.Config(out=tmp_path / "file" / "out"), markdown=str)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"--out must be in a folder that can be written, got .*; choose another"):
        Results(table1.Config(out=tmp_path / "out"), markdown=str)


def test_rows_of_other_flags_are_not_replaced(tmp_path):
    config = table1.Config(size=16, out=tmp_path / "figures")
    Results(config, markdown=str).add([{"a": 1}], complete=False)
    same, other = (Results(dataclasses.replace(config, size=size), markdown=str) for size in (16, 24))
    same.resume()
    assert same.rows == [{"flags": "--size 16", "a": 1}]
    with pytest.raises(ValueError, match=r"--out must .*, got .*figures\.jsonl with rows of --size 16; choose another"):
        other.resume()


@pytest.mark.parametrize(("width", "fits"), [("A", False), ((4, 8), True)])
def test_an_ablation_leaves_out_stencils_that_its_images_are_too_small_for(width, fits, capsys):
    """The digits have 12x12 points; three blocks need 17 for stencils of five points, and two blocks need 9."""
    assert ablation._fits(TrainConfig(width=width, kernel_size=5), {"image_shape": [12, 12, 1]}, "5x5") == fits
    assert ("left out '5x5', whose stencils need 17 points per axis" in capsys.readouterr().err) != fits
    assert ablation._fits(TrainConfig(width=width, kernel_size=5), {"image_shape": [9, 2], "masked": True}, "5x5")
