"""Ratios and shares of known numbers, and README's tables, which are those of the published runs."""

import pytest
import yaml

from oclam.artifacts import read_csv, write_absent, write_csv, write_json
from oclam.errors import UserError
from oclam.overview import overview
from oclam.params import read
from tests import ROOT


def publish(folder, task, errors, returns, full, expert=200):
    """A run of two seeds whose variance of actions is 1, and whose returns differ by budget around `returns`."""
    write_csv(folder / "probes.csv", [
        {"task": task, "variant": name, "state_variance_kept": 0.5 if name == "laom" else None, "action_variance": 1.0,
         "ridge_mse": error + change} for name, error in errors.items() for change in (-0.01, 0.01)])
    write_csv(folder / "returns.csv", [
        {"task": task, "variant": name, "budget": budget, "mean": mean + change, "stderr": 4.0}
        for name, mean in returns.items() for budget, change in ((8, 10), (64, -5), (128, 5))] + [
        {"task": task, "variant": name, "budget": 0, "mean": mean, "stderr": None} for name, mean in full.items()])
    write_json(folder / "metrics.json", {"return": {task: {"expert": expert}}})
    changes = ("env.color=true", "env.camera=true", "env.color_scale=0.1", "env.camera_scale=0.1")
    (folder / "params.yaml").write_text(yaml.safe_dump(read(ROOT / "params.yaml", changes).model_dump()))
    return folder


@pytest.fixture
def runs(tmp_path):
    full = {"bc": 100, "bc-no-distractors": 200}
    for task in ("walker-run", "cheetah-run"):
        (tmp_path / task).mkdir()
    return [publish(tmp_path / "walker-run", "walker-run", {"lapo": 0.6, "lapo-slots": 0.2, "lapo-no-distractors": 0.1},
                    {"lapo": 20, "lapo-slots": 30, "lapo-no-distractors": 80, "scratch": 10}, full),
            publish(tmp_path / "cheetah-run", "cheetah-run",
                    {"lapo": 0.4, "lapo-slots": 0.4, "laom": 0.8, "lapo-no-distractors": 0.2},
                    {"lapo": 40, "lapo-slots": 60, "lapo-no-distractors": 60}, full, expert=400)]


def test_probe_errors_are_compared_by_the_mean_of_ratios_and_recovery_by_means(runs):
    probes, *_ = overview(runs)
    assert "| R² (paper) | cheetah-run | walker-run | times better than lapo (paper) | recovery (paper) |" in probes
    assert "| lapo | 0.60 (0.68) | 0.40 (0.84) | 1 | – |" in probes
    # Ours: errors 1, 1/3, without distractors 1/2, 1/6. Paper: 3.1, 5.3 of 11.2, 7.0; 1.0, 2.7.
    assert "| lapo-slots | 0.60 (0.91) | 0.80 (0.88) | 2 (2.5) | 50% (63%) |" in probes
    assert "| laom | 0.20 | – | 0.5 | -200% |" in probes


def test_returns_are_shares_of_the_demonstrations_and_compared_by_means(runs):
    _, returns, _ = overview(runs)
    # Of 400 and 200, with 64 and 128 labels. Paper: 50% of 823 of 838, 8.4% of 749 of 740; lapo 23%, 4%.
    assert "| lapo | 10.0 ± 1.0 (22.6) | 10.0 ± 2.0 (4.0) | 10.0 ± 1.1 (13.3) | 1 | – |" in returns
    assert "| lapo-slots | 15.0 ± 1.0 (49.1) | 15.0 ± 2.0 (8.5) | 15.0 ± 1.1 (28.8) | 1.5 (2.2) | 29% (48%)" in returns
    assert "| lapo-no-distractors | 15.0 ± 1.0 (69.2) | 40.0 ± 2.0 (21.9) | 27.5 ± 1.1 (45.5) | 2.8 (3.4) |" in returns
    assert "| scratch | – | 5.0 ± 2.0 | – | 0.5 | – |" in returns  # of the only task where it is known
    assert "| bc | 25.0 (98.2) | 50.0 (101.2) | 37.5 (99.7) | 3.8 (7.5) | – |" in returns


@pytest.mark.parametrize("scale", ["color_scale", "camera_scale"])
def test_harder_distractors_than_the_paper_s_stand_without_its_numbers(runs, scale):
    params = runs[0] / "params.yaml"
    assert f"{scale}: 0.1" in params.read_text()
    params.write_text(params.read_text().replace(f"{scale}: 0.1", f"{scale}: 0.2"))
    probes, returns, _ = overview(runs)
    assert "paper" not in probes + returns
    assert "| lapo-slots | 0.60 | 0.80 | 2 | 50% |" in probes
    assert "| lapo-slots | 15.0 ± 1.0 | 15.0 ± 2.0 | 15.0 ± 1.1 | 1.5 | 29% |" in returns
    switch = scale.removesuffix("_scale")
    params.write_text(params.read_text().replace(f"{switch}: true", f"{switch}: false"))
    assert "(paper)" in overview(runs)[0]


@pytest.mark.parametrize("lapo, times", [(2.1, "190 (5)"), (1.9, "–")])  # lapo's standard error is 1
def test_ratios_to_returns_of_nearly_nothing_are_dashes_and_large_ones_whole_numbers(tmp_path, lapo, times):
    publish(tmp_path, "hopper-hop", {"lapo": 0.5}, {"lapo": lapo, "lapo-slots": 400}, {})
    write_csv(tmp_path / "returns.csv", [row | {"stderr": 1.0} for row in read_csv(tmp_path / "returns.csv")])
    assert f"| lapo-slots | 200.0 ± 0.5 (13.2) | {times} | – |" in overview([tmp_path])[1]


def test_returns_by_label_budget_are_means_over_tasks(runs):
    *_, budgets = overview(runs)
    assert budgets == ("| labelled trajectories | 8 | 64 | 128 |\n|---|---|---|---|\n"
                       "| lapo | 13.8 ± 1.1 | 8.1 ± 1.1 | 11.9 ± 1.1 |\n| lapo-slots | 18.8 ± 1.1 | 13.1 ± 1.1 | "
                       "16.9 ± 1.1 |\n| lapo-no-distractors | 31.2 ± 1.1 | 25.6 ± 1.1 | 29.4 ± 1.1 |\n"
                       "| scratch | – | – | – |\n")


def test_a_variant_that_no_run_has_has_no_row(runs):
    assert "laom-labels" not in "".join(overview(runs)) and "laom" not in "".join(overview(runs[:1]))


@pytest.mark.parametrize("expert", [0, None])
def test_where_lapo_or_the_demonstrations_return_nothing_a_dash_stands(tmp_path, expert):
    publish(tmp_path, "hopper-hop", {"lapo": 0.0, "lapo-slots": 0.5}, {"lapo": 0, "lapo-slots": 30}, {})
    rows = read_csv(tmp_path / "probes.csv")
    write_csv(tmp_path / "probes.csv", [row | ({"ridge_mse": 0.0} if row["variant"] == "lapo" else {}) for row in rows])
    probes, returns, _ = overview([tmp_path])
    assert "| lapo-slots | 0.50 (0.82) | – | – |" in probes
    assert "| lapo-slots | 15.0 ± 2.0 (13.2) | – | – |" in returns
    write_json(tmp_path / "metrics.json", {"return": {"hopper-hop": {"expert": expert}}})
    assert "lapo-slots" not in overview([tmp_path])[1]


def test_a_return_of_nothing_counts_and_a_budget_without_a_variant_has_a_dash(tmp_path):
    publish(tmp_path, "hopper-hop", {"lapo": 0.5}, {"lapo": 10, "lapo-slots": 5}, {})
    rows = read_csv(tmp_path / "returns.csv")
    rows = [row | {"mean": 0.0 if row["variant"] == "lapo-slots" else row["mean"]} for row in rows
            if (row["variant"], row["budget"]) != ("lapo-slots", 8)]
    write_csv(tmp_path / "returns.csv", rows)
    _, returns, budgets = overview([tmp_path])
    assert "| lapo-slots | 0.0 ± 2.0 (13.2) | 0 (5) | – |" in returns
    assert "| lapo-slots | – | 0.0 ± 2.0 | 0.0 ± 2.0 |" in budgets


def test_two_runs_of_one_task_are_not_averaged(runs):
    with pytest.raises(UserError, match="two runs have the same task"):
        overview([*runs, runs[0]])


def test_a_single_task_has_no_mean_and_what_was_not_measured_no_rows(runs):
    write_absent(runs[1] / "returns.csv", "there are no returns")
    probes, returns, budgets = overview(runs[1:])
    assert "| lapo-slots | 0.60 (0.91) |" in probes
    assert returns.splitlines() == ["| % of the demonstrations' return (paper) | cheetah-run | times lapo's (paper) | "
                                    "recovery (paper) |", "|---|---|---|---|"]
    assert len(budgets.splitlines()) == 2


@pytest.mark.parametrize("name", ["probes.csv", "returns.csv", "metrics.json", "params.yaml"])
def test_a_run_that_was_not_published_is_named(runs, name):
    (runs[1] / name).unlink()
    with pytest.raises(UserError, match=f"cheetah-run/{name}"):
        overview(runs)


def test_the_tables_of_the_readme_are_those_of_the_published_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for table in overview(sorted(ROOT.glob("reports/study-cpu-*"))):
        assert table.strip() in readme
