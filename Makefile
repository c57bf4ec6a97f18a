# `make demo` and `make test` are all a new user needs; both make .venv first, if it is missing.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the teacher's engine is for, cpu or gpu: each has pinned packages of its own.
ENGINE ?= cpu
LOCK := requirements/$(if $(filter gpu,$(ENGINE)),gpu,lock).txt

# The first Python from 3.11 to 3.13 that starts; PYTHON=… names another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := $(PIP) install -qq --no-deps --require-hashes
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# Every file of tests/benchmarks/ that is run by itself, as annotate.memory.
BENCHMARKS = $(subst /,.,$(patsubst tests/benchmarks/%.py,%,$(shell grep -rl --include=*.py 'def main' tests/benchmarks)))

.PHONY: help install demo test test-fast test-slow fuzz chaos docs bench lint audit audit-packages ui lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything pinned (about five minutes the first time, seconds after)

$(STAMP): $(LOCK) requirements/torch-cpu.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or run make PYTHON=/path/to/python"; exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) --version): about five minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@test $(ENGINE) = gpu || $(PINNED) -r requirements/torch-cpu.txt 2>/dev/null \
		|| $(PINNED) -r requirements/torch-cpu.txt --index-url $(TORCH_INDEX)
	@$(PINNED) -r $(LOCK)
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "installed: try $(BIN)/cotd doctor"

demo: install ## the whole main job on real reviews with a real teacher (ten minutes on two cores with AMX)
	@$(BIN)/cotd demo

test: install ## unit tests and one end-to-end run of the real path (under a quarter of an hour on two cores)
	@$(BIN)/cotd assets pull
	@$(BIN)/python -m pytest -m 'not slow and not integration' -n auto --dist loadfile
	@$(BIN)/python -m pytest -m 'integration and not slow' -n 2 --dist loadfile --no-loadscope-reorder

test-fast: install ## most unit tests, for use while working (under three minutes)
	@$(BIN)/cotd assets pull t5-mini rotten-tomatoes amazon-sentences
	@$(BIN)/python -m pytest -m 'not slow and not integration and not thorough' -n auto --dist loadfile

test-slow: install ## what `make test` leaves out: minutes each, run by name
	@$(BIN)/cotd assets pull
	@$(BIN)/python -m pytest -m slow

fuzz: install ## ten thousand hostile requests and two thousand hostile studies; the seed is printed if one does harm
	@COTD_FUZZ=10000 $(BIN)/python -m pytest tests/fuzz

chaos: install ## random faults under a study and an endpoint (an hour; SEED=… FAULTS=… MINUTES=…)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --faults $(or $(FAULTS),100) --minutes $(or $(MINUTES),60)

docs: install ## the documentation, in build/docs; a broken link or reference fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "built: build/docs/index.html"

bench: install ## the measurements of tests/benchmarks/; one of them with NAME=annotate.memory, a smoke test with SMALL=--small
	@$(BIN)/cotd assets pull
	@for name in $(or $(NAME),$(BENCHMARKS)); do echo "# $$name"; $(BIN)/python -m tests.benchmarks.$$name $(SMALL) || exit 1; done

lint: install ## style, types, and which package may import which
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

audit: install ## what bandit finds in our own code
	@$(BIN)/bandit -q -c pyproject.toml -r cotd pipelines serve

audit-packages: ## known vulnerabilities of the pinned packages; asks an advisory service, by pipx run pip-audit
	@for lock in lock gpu; do pipx run pip-audit --progress-spinner off --disable-pip -r requirements/$$lock.txt || exit 1; done

ui: install ## the MLflow UI on 127.0.0.1:5000, over runs/mlflow.db
	@$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db

lock: install ## write requirements/lock.txt from .venv as it is, and gpu.txt from pyproject.toml, both with hashes
	@$(PIP) freeze --all --exclude-editable | grep -viE '^(torch|torchvision|torchaudio|torchcodec|triton|pip)(==| @)' > requirements/lock.in
	@$(call write-lock,lock,--no-deps requirements/lock.in)
	@rm requirements/lock.in
	@$(call write-lock,gpu,--extra gpu pyproject.toml)

# The file keeps its own comment; 3.11 is the oldest Python that must find its wheels.
write-lock = { grep '^\#' requirements/$(1).txt; $(BIN)/uv pip compile -q --no-header --no-annotate --generate-hashes \
	--python-version 3.11 --python-platform x86_64-unknown-linux-gnu $(2); } > requirements/$(1).new \
	&& mv requirements/$(1).new requirements/$(1).txt

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
