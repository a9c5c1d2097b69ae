# make quickstart   trains everything on handwritten digits, prints a table (minutes, no network after installing)
# make test         runs the tests
# make test-all     runs also the further cases: every row of the paper, every family of networks, every launch file
# make test-oldest  runs a part of the tests with the oldest versions that pyproject.toml allows
# make reliability  the tests of faults, bad inputs and invariants alone, with their counts
# make check        lint and types
# make docs         the pages of docs/ and the reference of the API as a site, in build/docs
# Each makes its virtual environment in .venv if there is none (.venv-oldest for the oldest versions).

PYTHON ?= python3
# pip leaves compiling to the first import; where bytecode may not be kept, each of the many processes would compile anew
export PYTHONDONTWRITEBYTECODE :=

VENV ?= .venv
BIN := $(VENV)/bin

export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-all reliability test-oldest check format docs clean

quickstart: $(VENV)/.recipes
	$(BIN)/python recipes/quickstart.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ""

reliability: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/faults tests/bad_inputs tests/properties

test-oldest:
	.ci/oldest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.recipes: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[recipes]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[test]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[dev]"
	touch $@ $(VENV)/.test

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info outputs
