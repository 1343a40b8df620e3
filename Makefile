# Everything runs in .venv, which the targets make themselves; needed: Python >= 3.11, pip, make.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test faults notebooks docs format clean

train: .venv/installed  ## train an implicit reaction-diffusion network on real handwritten digits
	$(BIN)/python -m experiments.train digits --epochs 40

faults: .venv/installed-test  ## kill, freeze and damage runs, fill disks, and write the results (half an hour)
	$(BIN)/python -m pytest -vv tests/faults --full --faults-out experiments/results/faults

test: .venv/installed-test  ## everything that CI checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# notebooks/signals.ipynb needs the extra signals, whose packages CI does not install.
notebooks: $(patsubst %.py,%.ipynb,$(filter-out notebooks/signals.py,$(wildcard notebooks/*.py)))  ## notebooks/*.ipynb, executed (a few minutes)

docs: notebooks  ## the pages, docs/_build/html/index.html
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/api_pages.py

clean:
	rm -rf .venv build *.egg-info docs/_build docs/notebooks docs/results notebooks/*.ipynb

.venv/bin/python:
	$(PYTHON) -m venv .venv

notebooks/%.ipynb: notebooks/%.py $(wildcard lowcost/*.py lowcost/*/*.py) .venv/installed-docs
	$(BIN)/jupytext --quiet --to ipynb --output $@.new.ipynb $<
	$(BIN)/jupyter-execute --inplace $@.new.ipynb
	mv $@.new.ipynb $@

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[experiments]'
	touch $@

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[docs,experiments]'
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[test]'
	touch $@ .venv/installed .venv/installed-docs
