# Thin verbs; each makes .venv if it is missing. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread each: two workers are faster on two cores than one worker with two threads.
WORKERS ?= auto
# Files with slow tests come first (tests/conftest.py), and are not reordered.
# Compiled modules are kept: the tests start many processes that would compile them again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${THREADS:-1} $(BIN)/python -P -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick portable lint bench format docs coverage

demo: $(STAMP)  ## compress the built-in models and the splat scene, and compare
	$(BIN)/dpq demo

test: $(STAMP)  ## every test; those marked gpu skip themselves where there is no CUDA
	$(PYTEST)

quick: $(STAMP)  ## the tests that take about half a second at most
	$(PYTEST) -m "not slow"

portable: $(STAMP)  ## the tests that are sensitive to how a processor adds up, as if on others
	OTHER_PROCESSOR=1 ATEN_CPU_CAPABILITY=default NUMBA_CPU_NAME=generic $(PYTEST) -m portable
	ATEN_CPU_CAPABILITY=avx2 THREADS=2 $(PYTEST) -m "portable and not slow"

lint: $(STAMP)  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## what lint would complain about, mended where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the site, into build/site; broken links and missing names are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(STAMP)  ## every test, and which lines they run; build/coverage.xml for tools
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=xml

bench: $(STAMP)  ## the benchmarks; one record per line in benchmarks/results
	for suite in benchmarks/suites/*.py; do \
		PYTHONPATH=benchmarks $(BIN)/python $$suite || exit 1; \
	done

# Entry points live in installed metadata, so pyproject.toml decides when to install again.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
