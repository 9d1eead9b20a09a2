"""Ratios and shares of known numbers, and README's tables, which are those of the published runs."""


import pytest

from oclam.artifacts import read_csv, write_csv
from oclam.errors import UserError
from oclam.overview import overview
from tests import ROOT


def publish(folder, task, errors, returns, full):
    """A run of two seeds whose variance of actions is 1, and whose returns differ by budget around `returns`."""
    write_csv(folder / "probes.csv", [
        {"task": task, "variant": name, "state_variance_kept": 0.5 if name == "laom" else None, "action_variance": 1.0,
         "ridge_mse": error + change} for name, error in errors.items() for change in (-0.01, 0.01)])
    write_csv(folder / "returns.csv", [
        {"task": task, "variant": name, "budget": budget, "mean": mean + change} for name, mean in returns.items()
        for budget, change in ((8, 100), (64, -5), (128, 5))] + [
        {"task": task, "variant": name, "budget": 0, "mean": mean} for name, mean in full.items()])
    return folder


@pytest.fixture
def runs(tmp_path):
    full = {"bc": 100, "bc-no-distractors": 200}
    for task in ("walker-run", "cheetah-run"):
        (tmp_path / task).mkdir()
    return [publish(tmp_path / "walker-run", "walker-run", {"lapo": 0.6, "lapo-slots": 0.2, "lapo-no-distractors": 0.1},
                    {"lapo": 20, "lapo-slots": 30, "lapo-no-distractors": 60, "scratch": 10}, full),
            publish(tmp_path / "cheetah-run", "cheetah-run",
                    {"lapo": 0.4, "lapo-slots": 0.4, "laom": 0.8, "lapo-no-distractors": 0.2},
                    {"lapo": 40, "lapo-slots": 60, "lapo-no-distractors": 60}, full)]


def test_ratios_and_recovery_are_of_means_over_tasks(runs):
    text = overview(runs)
    probes, returns = text.split("\n\n")
    assert "| R² (paper) | cheetah-run | walker-run | times better than lapo (paper) | recovery |" in probes
    assert "| lapo | 0.60 (0.68) | 0.40 (0.84) | 1 | – |" in probes
    assert "| lapo-slots | 0.60 (0.91) | 0.80 (0.88) | 2 (2.5) | 50% |" in probes  # errors 1, 1/3; clean 1/2, 1/6
    assert "| laom | 0.20 | – | 0.5 | -200% |" in probes
    assert "| lapo-slots | 60.0: 60% (50%) | 30.0: 30% (8%) | 1.5 (2.1) | 40% |" in returns  # 64 and 128 labels
    assert "| lapo-no-distractors | 60.0: 30% (69%) | 60.0: 30% (22%) | 2.2 (4.2) | – |" in returns
    assert "| scratch | – | 10.0: 10% | 0.5 | – |" in returns


def test_a_variant_that_no_run_has_has_no_row(runs):
    assert "laom-labels" not in overview(runs) and "laom" not in overview(runs[:1])


def test_where_lapo_or_bc_return_nothing_a_dash_stands(tmp_path):
    run = publish(tmp_path, "hopper-hop", {"lapo": 0.0, "lapo-slots": 0.5}, {"lapo": 0, "lapo-slots": 30},
                  {"bc": 0, "bc-no-distractors": 0})
    for name in ("probes", "returns"):
        rows = read_csv(run / f"{name}.csv")
        key = "ridge_mse" if name == "probes" else "mean"
        write_csv(run / f"{name}.csv", [row | ({key: 0.0} if row["variant"] in ("lapo", "bc") else {}) for row in rows])
    probes, returns = overview([run]).split("\n\n")
    assert "| lapo-slots | 0.50 (0.82) | – (2.5) | – |" in probes
    assert "| lapo-slots | 30.0: – (16%) | – (5) | – |" in returns


def test_a_run_that_was_not_published_is_named(runs):
    (runs[1] / "returns.csv").unlink()
    with pytest.raises(UserError, match="cheetah-run/returns.csv"):
        overview(runs)


def test_the_tables_of_the_readme_are_those_of_the_published_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for table in overview(sorted(ROOT.glob("reports/study-cpu-*"))).split("\n\n"):
        assert table.strip() in readme
