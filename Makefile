VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
TORCHVISION := $(VENV)/torchvision
INSTALL := $(BIN)/pip install --disable-pip-version-check --no-input -q -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup

.PHONY: check test test-all test-controls demo serve bench soak

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[test]"
	touch $@

$(READY_ALL): $(READY)
	$(INSTALL) -e ".[test-all]"
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
