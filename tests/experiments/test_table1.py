"""Tests the program that writes Table 1."""

import json
import subprocess
import sys

from experiments.table1 import Config, main


def test_writes_the_table(tmp_path, capsys):
    """Both files hold the four rows of Table 1, with the weights m²c² and m²c + c²."""
    main(Config(size=16, kernel_size=5, channels=8, out=tmp_path / "results/table1"))
    rows = [json.loads(line) for line in (tmp_path / "results/table1.jsonl").read_text("utf-8").splitlines()]
    assert [row["layer"] for row in rows] == ["fully coupled", "RD explicit", "RD implicit", "RD circulant"]
    assert [row["weights"] for row in rows] == [25 * 64] + 3 * [25 * 8 + 64]
    assert rows[0]["multiply_adds"] == 16 * 16 * 25 * 64
    table = (tmp_path / "results/table1.md").read_text("utf-8")
    assert all(f"| {row['layer']} |" in table and f"{row['multiply_adds']:,}" in table for row in rows)
    assert "fully coupled" in capsys.readouterr().out


def test_help_explains_every_flag():
    """--help names the flags and explains them."""
    command = [sys.executable, "-m", "experiments.table1", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert all(text in result.stdout for text in ("--size", "--kernel-size", "--channels", "--out", "n = size²"))
