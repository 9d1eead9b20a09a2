# make repro [SCALE=paper]: the pipeline. make test, lint, bench. make setup: everything they need, in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
.PHONY: repro test lint bench setup system

repro: setup
ifdef SCALE
	@python -m oclam.scale $(SCALE)
endif
	dvc repro

test: setup
	pytest -q

lint: setup
	ruff check .

bench: setup
	for benchmark in tests/bench/[a-z]*.py; do python -m tests.bench.$$(basename $$benchmark .py) || exit 1; done

setup: .venv/made system

.venv/made: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "error: Python 3.11 to 3.13 is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e '.[expert,dev]'
	touch $@

# Rendering without a screen needs a GL library that no wheel brings.
system: .venv/made
	@python -m oclam.render --install
