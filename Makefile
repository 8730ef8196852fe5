# `make help` lists the targets.
# Needs nothing but Python 3.11 or newer, git and make; everything else goes into .venv/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
# Where it is set, each of the hundreds of processes of a run would compile torch's modules anew,
# in 3 to 12 seconds.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; exit; }; done)
VENV := .venv
BIN := $(VENV)/bin
BASE_STAMP := $(VENV)/.installed-base
STAMP := $(VENV)/.installed
GPU_STAMP := $(VENV)/.installed-gpu
STUDY_STAMP := $(VENV)/.installed-study
CONSTRAINTS := requirements/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The C++ library: one of the presets of runtime/cpp, and what fetch_deps.py fetches.
CPP_PRESET ?= release
CPP := build/cpp
CPP_DEPS := $(BIN)/python -m runtime.cpp.tools.fetch_deps $(CPP)/deps
CPP_JOBS ?= $(shell nproc)
CPP_OPTIONS ?=
FUZZ_SECONDS ?= 60
CPP_TESTS := tests/runtime/cpp tests/conformance
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CMAKE := $(CURDIR)/$(CPP)/deps/bin/cmake
CTEST := $(CURDIR)/$(CPP)/deps/bin/ctest

.PHONY: help base venv test cpp cpp-test cpp-fuzz cpp-docs test-slow gpu-test gpu-bench check check-python check-cpp format demo bench study wheel-test test-lowest test-newest clean bench-large

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

venv: $(STAMP) ## create .venv with every dependency

base: $(BASE_STAMP) ## create .venv with the base install: enough for the runtime and to build the C++ library

$(BASE_STAMP): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@# The pip that comes with Python 3.11 takes half again as long. Python compiles what it imports;
	@# to compile all that is installed takes half the time of installing.
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) --upgrade pip
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) -e .
	@touch $@

$(STAMP): $(BASE_STAMP)
	@# torch first, pinned there: an unpinned torch pulls gigabytes of CUDA packages.
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) torch
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

test: $(STAMP) ## fast tests
	@# A process a core, at most four, each with one thread: a file's tests stay together, with its fixtures.
	@# What drives the C++ library comes with it: make cpp-test.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) --durations 25 $(CPP_TESTS:%=--ignore=%)

test-slow: $(STAMP) ## tests that take longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" $(SPREAD) --durations 25

$(GPU_STAMP): $(STAMP)
	@# Two packages bring the module onnxruntime; only one may be installed.
	$(PIP) uninstall --quiet --yes onnxruntime onnxruntime-gpu
	@# TensorRT beside its RTX flavour, which knows no data-centre GPU.
	$(PIP) install --quiet -c $(CONSTRAINTS) "onnxruntime-gpu[cuda,cudnn]" cuda-bindings tensorrt-cu13
	@touch $@

gpu-test: $(GPU_STAMP) ## tests that need an NVIDIA GPU: CUDA and TensorRT, every precision
	$(BIN)/python -m pytest -m gpu

cpp: $(BASE_STAMP) ## the C++ library and its programs, in build/cpp/; CPP_PRESET=asan and others
	@$(CPP_DEPS) $(if $(filter tensorrt fuzz,$(CPP_PRESET)),--$(CPP_PRESET))
	@cd runtime/cpp && PATH=$(CURDIR)/$(CPP)/deps/bin:$$PATH $(CMAKE) --preset $(CPP_PRESET) $(CPP_OPTIONS)
	@cd runtime/cpp && $(CMAKE) --build --preset $(CPP_PRESET) --parallel $(CPP_JOBS)

cpp-test: cpp $(STAMP) ## tests of the C++ library, its own and those that drive it from Python
	@cd runtime/cpp && $(CTEST) --preset $(CPP_PRESET) --parallel $(CPP_JOBS)
	OMP_NUM_THREADS=1 OURO_CPP_BUILD=$(CPP)/$(CPP_PRESET) $(BIN)/python -m pytest $(SPREAD) --durations 25 $(CPP_TESTS)

cpp-fuzz: $(STAMP) ## the fuzz programs of the C++ library, each for FUZZ_SECONDS, 60 unless it is given
	@$(MAKE) --no-print-directory cpp CPP_PRESET=fuzz
	@$(BIN)/python -m runtime.cpp.tools.fuzz --seconds $(FUZZ_SECONDS)

cpp-docs: $(BASE_STAMP) ## pages of the C and C++ headers, in build/cpp/docs/html/
	@$(CPP_DEPS) --docs
	@mkdir -p $(CPP)/docs
	@cd runtime/cpp && $(CURDIR)/$(CPP)/deps/bin/doxygen

check: $(STAMP) ## ruff, mypy, who may import whom; clang-format and clang-tidy
	@# Side by side: of the first most is mypy, which has one thread.
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check-python check-cpp

check-python: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check-cpp: $(STAMP)
	@$(CPP_DEPS)
	@cd runtime/cpp && $(CMAKE) --preset tidy >/dev/null
	$(BIN)/python -m runtime.cpp.tools.lint

format: $(STAMP) ## let ruff and clang-format rewrite the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m runtime.cpp.tools.lint --fix

demo: $(STAMP) ## the whole chain on SmolLM2-135M-Instruct; leaves build/demo/
	@$(BIN)/python -m demo.run

$(STUDY_STAMP): $(STAMP)
	$(PIP) install --quiet -c $(CONSTRAINTS) -e ".[study]"
	@touch $@

study: $(STUDY_STAMP) ## which part of a folded model is worth what; hours, goes on where it stopped
	@$(BIN)/python -m study.run

bench: $(STAMP) ## speeds, as ratios within one run; needs the demo's bundle
	@$(BIN)/python -m bench.decode

gpu-bench: $(GPU_STAMP) ## parity and speed on the GPU; needs the demo's checkpoint, writes bench/results/
	@$(BIN)/python -m bench.gpu --json

bench-large: $(STAMP) ## convert and export the shape of Qwen2.5-3B; needs 20 GB of disk
	$(BIN)/python -m bench.large build/large

wheel-test: $(STAMP) ## build the wheel, install it into a fresh environment, use it there
	$(BIN)/python tests/wheel_check.py

test-lowest: $(STAMP) ## torch-free tests against the lowest versions of the base install
	$(BIN)/python tests/versions_check.py lowest

test-newest: $(STAMP) ## tests against the newest ONNX Runtime, tokenizers and transformers
	$(BIN)/python tests/versions_check.py newest

clean: ## remove build outputs (keeps .venv and the download cache)
	rm -rf build dist .wheel-test *.egg-info .mypy_cache .ruff_cache .pytest_cache
