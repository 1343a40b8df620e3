"""Tests the transfer program: which runs it compares, and what its page states."""

import json
from pathlib import Path

from experiments import transfer
from experiments.common import training
from experiments.common.files import read_rows

MEASURED = read_rows(Path(transfer.__file__).parent / "results/transfer.jsonl")[0]
for name in ("variant", "images", "start", "flags"):  # fields that a run does not have
    del MEASURED[name]


def test_five_runs_are_compared(tmp_path, monkeypatch):
    """Runs start from scratch, once for longer, and from trained weights at three rates, in different directories."""
    wanted = []

    def run(config, recipe):
        wanted.append(config)
        config.directory().mkdir(parents=True)
        (config.directory() / "result.json").write_text(json.dumps({**MEASURED, "epochs": config.epochs}))
        return 0

    monkeypatch.setattr(training, "run", run)
    config = transfer.Config(tmp_path, epochs=7, workdir=tmp_path / "runs", out=tmp_path / "t")
    assert transfer.main(config) == 0
    start = config.init_from
    assert [(run.init_from, run.loaded_rate, run.epochs) for run in wanted] == [
        (None, 1.0, 7),
        (None, 1.0, 7 * transfer.LONGER),
        *((start, rate, 7) for rate in (1.0, 0.1, 0.0)),
    ]
    assert all(run.evaluate_every == run.epochs for run in wanted)
    assert len({run.directory() for run in wanted}) == 5
    rows = read_rows(tmp_path / "t.jsonl")
    assert [row["variant"] for row in rows] == list(transfer.variants(config))
    assert all(name in (tmp_path / "t.md").read_text() for name in transfer.variants(config))
