# Every target sets up what it needs, on a machine that has only make and Python 3.11 or newer.
PYTHON ?= python3
STAMP  := .venv/.carom-stamp
FLOORS := domains processes solvers scores validation
# Threads that spin while they wait slow each other down tenfold where the cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
PIP    := .venv/bin/python -m pip install -c constraints.txt

.PHONY: help setup demo test lint format types examples bench clean

help:
	@echo 'make demo      train on real images, sample with several solvers, write out/demo/'
	@echo 'make test      run the tests'
	@echo 'make lint types examples bench     the other checks;  make format: rewrite the sources in the agreed layout'
	@echo 'make clean     remove .venv, build and caches (out/ stays)'
	@echo 'Another Python than python3:       make PYTHON=/path/to/python test'

setup: $(STAMP)

# The stamp is written last, so that an interrupted set-up is taken up again. torch comes first and alone: where there
# is a CPU build it is chosen then, and nothing that follows can change it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "carom needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1)"; \
	  echo "Name a newer one, for example: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)"; exit 1; } >&2
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev,plot,train]'
	@touch $@

demo: $(STAMP)
	.venv/bin/carom demo

test: $(STAMP)
	.venv/bin/python -m pytest -n auto

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: $(STAMP)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The links give mypy the package in the shape it is installed in; see pyproject.toml.
types: $(STAMP)
	@rm -rf build/types && mkdir -p build/types/carom
	@ln -s "$(CURDIR)"/carom/* $(foreach floor,$(FLOORS),"$(CURDIR)/$(floor)") build/types/carom/
	.venv/bin/mypy

# Scripts run in an empty folder, so that what they write does not land in the checkout.
run-scripts = folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && for script in "$(CURDIR)"/$(1)/*.py; do \
	echo "== $${script\#\#*/}"; (cd "$$folder" && MPLBACKEND=Agg "$(CURDIR)/.venv/bin/python" "$$script") || exit 1; done

# Two at a time, each on one thread, their output kept together.
examples: $(STAMP)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	printf '%s\n' "$(CURDIR)"/examples/*.py | OMP_NUM_THREADS=1 MPLBACKEND=Agg xargs -P 2 -I{} sh -c \
	'printed=$$("$(CURDIR)/.venv/bin/python" "{}" 2>&1); code=$$?; echo "== $$(basename "{}")"; echo "$$printed"; exit $$code'

.venv/.carom-bench-stamp: $(STAMP)
	$(PIP) -e '.[bench]'
	@touch $@

bench: .venv/.carom-bench-stamp
	@$(call run-scripts,benchmarks)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
