# Everything a person does with a checkout. `make demo` and `make test` need Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@echo "==> creating $(VENV) and installing lasa (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job on the embedded model; ends by naming the report
	@echo "==> lasa run recipes/embedded.yaml --output runs/demo"
	@$(BIN)/lasa run recipes/embedded.yaml --output runs/demo

test: $(STAMP)  ## the test suite (minutes)
	@echo "==> pytest"
	@$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)  ## long checks: known-answer trainings, kill tests
	@$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy

bench: $(STAMP)  ## speed, measured as ratios beside their targets
	@$(BIN)/python benchmarks/run.py

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs
