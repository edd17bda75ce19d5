# make serve: run the server.  make test: everything that CI checks.  Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080

.PHONY: serve test test-core lint latency compare fuzz strace clean

serve: $(VENV)/serve.stamp
	$(BIN)/python -m server --port $(PORT) $(MODELS)

test: $(VENV)/test.stamp strace
	$(BIN)/python -m pytest $(TESTS)

# The core packages only: no model files to fetch, no strace, no Java.
test-core: $(VENV)/core.stamp
	$(BIN)/python -m pytest -m core

lint: $(VENV)/test.stamp
	$(BIN)/python -m flake8 kernels server tests
	$(BIN)/python -m mypy

latency: $(VENV)/bench.stamp
	$(BIN)/python -m pytest tests/bench --benchmark-enable --thresholds

compare: $(VENV)/bench.stamp
	$(BIN)/python -m tests.bench.compare docs/comparison.md

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --requests 1000000
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m tests.fuzz --requests 200000

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.stamp: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/core.stamp: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[coretest]'
	touch $@ $(VENV)/serve.stamp

$(VENV)/test.stamp: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/core.stamp $(VENV)/serve.stamp

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]'
	touch $@

# Tests count system calls with strace; where it can't be had they say so and are skipped.
strace:
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq strace >/dev/null; } \
	  || echo "strace is missing and cannot be installed here (apt-get as root): tests that count system calls are skipped"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .hypothesis
