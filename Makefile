# make quickstart   trains everything on handwritten digits, prints a table (minutes, no network after installing)
# make test         runs every test
# make test-oldest  runs a part of the tests with the oldest versions that pyproject.toml allows
# make reliability  the tests of faults, bad inputs and invariants alone, with their counts
# make check        lint and types
# Each makes its virtual environment in .venv if there is none (.venv-oldest for the oldest versions).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test reliability test-oldest check format clean

quickstart: $(VENV)/.recipes
	$(BIN)/python recipes/quickstart.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

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

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.recipes: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[recipes]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.test

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info outputs
