# make serve: run the server.  make test: everything that CI checks.  Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080

.PHONY: serve test test-core lint validate who-talks latency compare fuzz strace chromium java clean

serve: $(VENV)/serve.stamp
	$(BIN)/python -m server --port $(PORT) $(MODELS)

test: $(VENV)/test.stamp $(VENV)/beside.stamp strace chromium java
	$(BIN)/python -m pytest $(TESTS)

# The core packages only: no model files to fetch, no strace, no Java.
test-core: $(VENV)/core.stamp
	$(BIN)/python -m pytest -m core

lint: $(VENV)/test.stamp
	$(BIN)/python -m flake8 kernels server tracing databricks tests
	$(BIN)/python -m mypy

latency: $(VENV)/bench.stamp
	$(BIN)/python -m pytest tests/bench --benchmark-enable --thresholds

compare: $(VENV)/bench.stamp
	$(BIN)/python -m tests.bench.compare docs/comparison.md

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --requests 1000000
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m tests.fuzz --requests 200000
	$(BIN)/python -m tests.fuzz_models --mutations 50000

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

# Tests trace with strace and look at reports in Chromium; where these can't be had they say so and are skipped.
strace chromium:
	@command -v $@ >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $@ >/dev/null; } \
	  || echo "$@ is missing and cannot be installed here (apt-get as root): tests that need it are skipped"

# Spark needs Java.
java:
	@command -v java >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq openjdk-17-jre-headless >/dev/null; } \
	  || echo "java is missing and cannot be installed here (apt-get as root): tests that need Spark are skipped"

# Databricks' other packages and what their import needs, in a folder of their own: they bring a pyspark of their own.
BESIDE := databricks-connect databricks-sql-connector grpcio grpcio-status googleapis-common-protos lz4 oauthlib \
  pybreaker pyjwt thrift
$(VENV)/beside.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/beside $(BESIDE)
	touch $@

validate: $(VENV)/serve.stamp strace
	$(BIN)/python -m tracing validate --report report.html

who-talks: $(VENV)/test.stamp strace
	$(BIN)/python -m tracing who-talks --out docs/who-talks.md

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .hypothesis
