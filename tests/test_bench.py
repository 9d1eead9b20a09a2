"""Every benchmark of tests/bench prints its figures; here each measures once, in as few steps as it allows."""

import importlib
import re
import sys
import time
from contextlib import chdir

import pytest

from tests import ROOT
from tests.bench import timing

FEW = {"cluster": {"COUNT": 1}, "collect": {"FRAMES": 4, "STEPS": 1}, "data": {"STEPS": 100}, "experts": {"NUMBER": 2},
       "lapo": {"COUNT": 1, "STEPS": 40}, "masks": {"FRAMES": 80, "AGAIN": 1}}
WORDS = {"encoder": ["--rounds", "1"], "evaluation": ["2"], "slots": ["videosaur", "ocp.steps=1", "--restarts", "1"]}
NEED_A_RUN = {"encoder", "slots"}
PARTS = {"package", "timing"}  # of other benchmarks
NAMES = sorted({path.stem for path in (ROOT / "tests/bench").glob("[a-z]*.py")} - PARTS)


@pytest.fixture
def once(monkeypatch):
    """Everything is measured in one round."""
    measure = timing.seconds

    def seconds(work, rounds=None, clock=time.perf_counter):
        return measure(work, 1, clock)

    monkeypatch.setattr(timing, "seconds", seconds)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_finite_figures(name, once, monkeypatch, capsys, request):
    bench = importlib.import_module(f"tests.bench.{name}")
    for constant, value in FEW.get(name, {}).items():
        monkeypatch.setattr(bench, constant, value)
    monkeypatch.setattr(sys, "argv", [name, *WORDS.get(name, [])])
    with chdir(request.getfixturevalue("pipeline") if name in NEED_A_RUN else ROOT):
        bench.main()
    printed = capsys.readouterr().out
    assert re.search(r"\d", printed) and not re.search(r"\b(nan|inf)\b", printed)


def test_make_bench_runs_all_that_need_no_run():
    loop = re.search(r"^bench:.*\n.*for name in (.*?);", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert loop[1].split() == [name for name in NAMES if name not in NEED_A_RUN]
