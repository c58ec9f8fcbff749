# make install | demo | test | lint | packages | wheels | native | clean; checks of the C code in tests/native/checks.mk and cross.mk
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find native -name '*.c' -o -name '*.h' | grep -v _elutq.c) native/build_ffi.py

DEMO_MODEL := build/novels-6m-2bit.gguf

.PHONY: install demo test lint packages wheels native clean

install: $(VENV)/.installed

# The stamp depends on what the installation is made from, so that a second call does nothing.
$(VENV)/.installed: pyproject.toml setup.py $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

native: install

demo: install
	mkdir -p build
	test -f $(DEMO_MODEL) || $(BIN)/elutq quantize tests/data/novels-6m -o $(DEMO_MODEL) --bits 2 --calibration tests/data/sampled.txt
	$(BIN)/elutq info $(DEMO_MODEL)
	$(BIN)/elutq run $(DEMO_MODEL) -p "It was a dark night, and" -n 64 --temp 0

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/windows
	$(BIN)/lint-imports --no-cache
	awk 'length > 128 {print FILENAME ":" FNR ": more than 128 columns"; bad = 1} END {exit bad}' $(filter-out %.py,$(NATIVE_SOURCES)) $(wildcard tests/*/*.c)

# Wheel and sdist, installed in fresh environments of the lowest and the newest dependencies: needs a package index.
packages: install
	$(BIN)/python tests/packaging/check_packages.py build/packages

# The wheels of every platform, cross-compiled where this is not it: needs a package index. WHEELS: some of them only.
wheels: install
	$(BIN)/python tests/packaging/build_wheels.py dist $(WHEELS)

clean:
	rm -rf build $(VENV) *.egg-info native/elutq_native/_elutq*

include tests/native/checks.mk
include tests/native/cross.mk
