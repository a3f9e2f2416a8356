VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
READY_DOCS := $(VENV)/.ready-docs
READY_PACKAGE := $(VENV)/.ready-package
TORCHVISION := $(VENV)/torchvision
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup

.PHONY: check test test-all test-controls demo serve bench soak docs docs-serve package test-install test-lowest

# The pip that comes with Python may be older than 25.1, the first that installs dependency groups.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "pip>=25.1"
	$(INSTALL) -e . --group test
	touch $@

$(READY_ALL): $(READY)
	$(INSTALL) -e . --group test-all
	touch $@

$(READY_DOCS): $(READY)
	$(INSTALL) --group docs
	touch $@

$(READY_PACKAGE): $(READY)
	$(INSTALL) --group package
	touch $@

# torchvision, which transformers' processors and timm need, may not fit the build of torch, and samexporter asks for
# other versions of torch and onnx: only tests of ours against them see them.
$(TORCHVISION): $(READY)
	$(INSTALL) --no-deps --target $@ torchvision==0.28.0 "timm>=1.0.20" samexporter==0.5.0 \
		opencv-python-headless ftfy regex wcwidth
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

test-controls: $(READY_ALL) $(TORCHVISION)
	PYTHONPATH=$(TORCHVISION) $(PYTEST) tests/compat tests/parity/test_edgetam.py tests/test_edgetam_files.py \
		tests/export/test_samexporter.py

demo: $(READY)
	$(BIN)/python examples/demo.py

serve: $(READY)
	$(BIN)/masklet serve examples --data $(VENV)/serve-data

# An hour of attacks, see docs/reliability.md. make soak ARGS="--only kills --minutes 5"
soak: $(READY_ALL)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m soak $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/image.py

# The site is written to site/. The variable leaves out an announcement of MkDocs' successor.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

package: $(READY_PACKAGE)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Installs the wheel with each extra by itself, and with the lowest versions that pyproject.toml allows. Takes many
# minutes and gigabytes, so CI does not run it.
test-install: package
	$(BIN)/python tests/installing.py extras

test-lowest: package
	$(BIN)/python tests/installing.py lowest
