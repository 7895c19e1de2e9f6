# Everything a newcomer or CI types. Each target does its own set-up in .venv; only Python 3.11+, pip and make are needed.
#
#   make run        the quickstart: train, kill it, type it again
#   make test       every law, every format, one real process per kind of thing (minutes)
#   make test-all   all tests: `make test`, and fleets, random kills and every case of each long list
#   make check      format, lint, types
#   make bench      the loader against its ceilings and against Grain, and what digests cost it
#   make proof      every field, byte and line that counts, changed one at a time: who notices
#   make golden     the golden files of a raised format or version; overwrites none
#   make mutants    one-line faults in the package, one at a time: each must be killed by `make test`
#   make fuzz       mutated files into every reader, kept where they reach new lines (15 minutes)
#   make soak       thousands of interrupts and signals: to hand-overs, to runs of one process and of many (about two hours)

SHELL := /bin/sh
VENV ?= .venv
# The first of these that runs and is Python 3.11 or newer (a version manager's shim may refuse to run); override with
# `make PYTHON=python3.13 …`. 3.12 is the main line, with the newest jax.
PYTHON ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python3 python3.13 python3.14 python3 python3.11; do \
    command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_FLAGS ?= -q
# Two workers, a file to a worker: what a file makes once is used by all its tests.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

.PHONY: run test test-all check format bench proof fuzz mutants soak golden constraints clean help setup

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -15

setup: $(READY)

# Exact tested versions: one constraints file per dependency line, chosen by the interpreter's version.
$(READY): pyproject.toml constraints/py311.txt constraints/py312.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on PATH; name one with PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints/$$($(BIN)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt \
	  --editable '.[dev]'
	@touch $(READY)

run: $(READY)
	$(BIN)/datarax run configs/quickstart.toml

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m "" --hypothesis-profile full

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/loader_speed.py
	$(BIN)/python benchmarks/save_blocking.py
	$(BIN)/python -m benchmarks.digest_cost
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.resume_time

proof: $(READY)
	$(BIN)/python -m tests.proof.table

mutants: $(READY)
	$(BIN)/python -m tests.mutants

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seconds 120

soak: $(READY)
	$(BIN)/python -m tests.soak

# Adds the golden orders and snapshots of versions and formats that were raised; never writes one that is there.
golden: $(READY)
	$(BIN)/python -m tests.make_golden

# Resolve the newest versions that pyproject allows and record them; run once with a 3.11 and once with a 3.12 interpreter.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	build/constraints/bin/python -m pip freeze --exclude datarax | grep -v '@' \
	  > constraints/$$(build/constraints/bin/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt

clean:
	rm -rf $(VENV) .venv-* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
