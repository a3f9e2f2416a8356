VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
INSTALL := $(BIN)/pip install --disable-pip-version-check --no-input -q -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup

.PHONY: check test test-all demo bench

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[test]"
	touch $@

$(READY_ALL): $(READY)
	$(INSTALL) -e ".[test-all]"
	touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(READY)
	$(PYTEST) -m "not slow and not recipe and not gpu"

test-all: $(READY_ALL)
	$(PYTEST)

demo: $(READY)
	$(BIN)/python examples/demo.py

bench: $(READY)
	$(BIN)/python benchmarks/image.py
