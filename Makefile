# make repro [SCALE=paper]: the pipeline. make test, lint, bench. make setup: all they need, in .venv
# and from the system.
# make publish RUN=study-cpu-walker-run: the small files of the run in `reports`, for Git, in reports/study-cpu-walker-run.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SYSTEM := libegl1 libgl1-mesa-dri libosmesa6 python3-venv
.PHONY: repro test test-fast test-cpus faults lint bench publish setup system

repro: setup
ifdef SCALE
	@test -f "params/$(SCALE).yaml" || { echo "error: SCALE=$(SCALE): there is no params/$(SCALE).yaml" >&2; exit 1; }
	python -m oclam.params "params/$(SCALE).yaml"
endif
	python -m oclam.slices --dvc

test: setup
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --dist loadgroup

# Tests that take seconds, for another Python: make test-fast PYTHON=python3.13 VENV=.venv-3.13.
test-fast: setup
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --dist loadgroup --ignore tests/stages --ignore tests/experts \
		--ignore tests/report --ignore tests/faults --ignore tests/export $(addprefix --ignore tests/test_,$(addsuffix .py, \
		cluster collect compile experiments parallel plan slices wheel))

# The suite as on other CPUs: without vector instructions, with AVX2 and as this one is, with one thread and with two.
test-cpus: setup
	for threads in 1 2; do for cpu in default avx2 native; do \
		if [ $$cpu = native ]; then unset ATEN_CPU_CAPABILITY; else export ATEN_CPU_CAPABILITY=$$cpu; fi; \
		echo "$$cpu, $$threads threads"; OMP_NUM_THREADS=$$threads python -m pytest -q -n auto --dist loadgroup || exit 1; done; done

# 300 injections of faults into the stages, 1,000 mutated parameter files, 20 nodes that die: an hour of one core.
faults: setup
	OMP_NUM_THREADS=1 python -m tests.faults --count 300
	OMP_NUM_THREADS=1 python -m tests.faults.params --count 1000
	OMP_NUM_THREADS=1 python -m tests.faults.nodes --kills 20

lint: setup
	ruff check .

# Besides, tests.bench.encoder and tests.bench.slots read what a run has collected.
bench: setup
	@for name in bc cluster collect data evaluation experts lapo masks ocp; do python -m tests.bench.$$name || exit 1; done

publish:
	@test -n "$(RUN)" || { echo "error: name the run: make publish RUN=study-cpu" >&2; exit 1; }
	@git diff --quiet HEAD -- oclam stages dvc.yaml || \
		{ echo "error: commit oclam, stages and dvc.yaml first: the published run names the commit" >&2; exit 1; }
	rm -rf "reports/$(RUN)/figures"
	mkdir -p "reports/$(RUN)"
	cp -rf reports/figures reports/*.csv reports/metrics.json params.yaml "reports/$(RUN)"
	git rev-parse HEAD > "reports/$(RUN)/commit"
	python -m oclam.published "reports/$(RUN)"

setup: system $(VENV)/made

$(VENV)/made: pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		"error: Python 3.11 to 3.13 is needed, this is %s; name one: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q uv
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV)/bin/python -e '.[expert,dev]'
	touch $@

# Rendering without a screen needs a GL library, which no wheel brings; Debian keeps Python's venv apart.
system:
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null || ! PATH=$$PATH:/sbin:/usr/sbin ldconfig -p | grep -qE 'libEGL.so.1|libOSMesa.so.8'; then \
		if [ $$(id -u) = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SYSTEM) >/dev/null; \
		else echo "error: missing system packages; run: sudo apt-get install $(SYSTEM)" >&2; exit 1; fi; fi
