# A fresh machine needs Python >= 3.10 and make. Everything is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2
SPHINXOPTS ?= --fail-on-warning --keep-going
BIN := $(VENV)/bin

.PHONY: help quickstart test lint format docs clean
# Two targets installing into one environment at a time would damage it.
.NOTPARALLEL:

help:
	@echo "make quickstart  train a small potential on real molecules and run it (minutes on a CPU)"
	@echo "make test        run the test suite"
	@echo "make lint        ruff and mypy"
	@echo "make format      apply ruff's fixes and formatting"
	@echo "make docs        build the documentation into docs/_build/html, run its lessons and snippets"
	@echo "make clean       remove what builds and tools leave, the environment excepted"

quickstart: $(VENV)/.installed-examples
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/md_ethanol.py

# One thread a worker: the workers share the cores.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html $(SPHINXOPTS) docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b doctest $(SPHINXOPTS) docs docs/_build/doctest

clean:
	rm -rf build dist *.egg-info docs/_build docs/_generated docs/api/generated docs/gallery
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra, so that an unchanged environment is not installed again.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

# The stamps are made for their time alone and are never intermediate files to delete.
.SECONDARY:
