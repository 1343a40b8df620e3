# Everything runs in .venv, which the targets make themselves; needed: Python >= 3.11, pip, make.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test faults format clean

train: .venv/installed  ## train an implicit reaction-diffusion network on real handwritten digits
	$(BIN)/python -m experiments.train digits --epochs 40

faults: .venv/installed  ## kill, damage, fill disks, and print what became of it (a quarter of an hour)
	$(BIN)/python -m experiments.faults --out experiments/results/faults

test: .venv/installed-test  ## everything that CI checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadgroup

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[test]'
	touch $@ .venv/installed
