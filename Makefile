# The package, editable, in .venv; everything else runs from there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-peers test-triton36 lint typecheck format

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS ?= .venv-peers
PEERS_STAMP := $(PEERS)/.installed
TRITON36 ?= .venv-triton36
# The pythons that are tested; a name may exist and not run (version managers), so each is tried.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$name && break; done)
# Without an NVIDIA driver a plain torch requirement would fetch gigabytes of CUDA on Linux.
TORCH_CPU ?= 2.13.0
# (A CPU build where pip is told of an index that has one, else the default build.)

help:
	@echo "make demo       train and compare plain and anchored pipelines, on a CPU, in minutes"
	@echo "make test       the tests"
	@echo "make test-slow  the slow ones"
	@echo "make test-peers our losses against TRL's and Trinity-RFT's own, in .venv-peers"
	@echo "make test-triton36  the Triton kernels on the oldest Triton we support, in .venv-triton36"
	@echo "make lint       ruff and mypy"
	@echo "make venv       only make .venv"

venv: $(STAMP)

# Without build isolation, for the C++ extension is compiled against the torch installed just before.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*.inc)
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or 3.12 is needed; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'setuptools>=77' wheel
	@if [ "$$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then \
		echo "no NVIDIA driver: installing the CPU build of torch $(TORCH_CPU)"; \
		$(BIN)/python -m pip install --quiet "torch==$(TORCH_CPU)+cpu" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet "torch==$(TORCH_CPU)"; \
	else \
		$(BIN)/python -m pip install --quiet 'torch>=2.11'; \
	fi
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[engine,test]'
	@if ls csrc/*.cpp >/dev/null 2>&1 && ! ls kernels/_C*.so >/dev/null 2>&1; then \
		echo "make: the C++ operations were NOT built; $(BIN)/python -m pip install -v --no-build-isolation -e . says why" >&2; \
	fi
	touch $@

demo: $(STAMP)
	$(BIN)/aapa demo

test: $(STAMP)
	$(BIN)/pytest -n logical --maxprocesses 8

test-slow: $(STAMP)
	$(BIN)/pytest -m slow -n logical --maxprocesses 8

# Peers to compare with. A .pth file adds what .venv has, so only what it lacks is installed here, without requirements;
# site.addsitedir reads the .pth files found there, too, of which the editable install is one.
$(PEERS_STAMP): $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	own=$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$shared')" > "$$own/shared.pth"
	$(PEERS)/bin/python -m pip install --quiet --no-deps trl==1.16.0 accelerate==1.15.0 trinity-rft==0.6.0
	touch $@

test-peers: $(PEERS_STAMP)
	$(PEERS)/bin/python -m pytest -m peers tests/peers

# Only a folder that comes before .venv's own Triton.
$(TRITON36)/triton: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON36) triton==3.6.0
	touch $@

test-triton36: $(TRITON36)/triton
	PYTHONPATH=$(TRITON36) $(BIN)/pytest tests/triton
	PYTHONPATH=$(TRITON36) $(BIN)/python -m benchmarks.kernels.aot_report

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory typecheck

# mypy finds packages by folder names, so it gets a folder in which the packages lie as they are imported.
typecheck: $(STAMP)
	@rm -rf build/types/aapa && mkdir -p build/types/aapa
	@ln -s $(CURDIR)/aapa/* $(CURDIR)/engine $(CURDIR)/kernels build/types/aapa/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml | sed -E 's#^aapa/(engine|kernels)/#\1/#'

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
