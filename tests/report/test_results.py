"""Numbers that go into the tree come out as their closed forms."""

import json
from contextlib import chdir
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from oclam import paths
from oclam.artifacts import read_csv, read_json, write_csv, write_json
from oclam.errors import UserError
from oclam.report.results import FEW, gather, metrics, select
from oclam.report.tables import PAPER_DURATIONS, tables
from oclam.variants import LATENT, VARIANTS, normaliser
from tests.report import tree as tree


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with chdir(tmp_path_factory.mktemp("tree")):
        tree.write()
        return read()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The working folder, with a tree of its own to damage."""
    monkeypatch.chdir(tmp_path)
    tree.write()
    return tmp_path


def read():
    return gather("small", [tree.TASK], tree.SEEDS, tree.RESTARTS, tree.BUDGETS)


def test_a_single_episode_has_a_probability_of_improvement_and_no_interval(written, monkeypatch):
    monkeypatch.setattr(tree, "EPISODES", 1)
    tree.write([0])
    for found in gather("small", [tree.TASK], [0], tree.RESTARTS, tree.BUDGETS).returns:
        assert found["improvement_low"] is found["improvement_high"] is None
        expected = None if found["variant"] == "lapo" or not found["budget"] else 1.0  # the tree's returns increase
        assert found["improvement"] == expected, found


def test_normalised_return_is_a_share_of_cloning_in_the_same_view(results):
    for variant in (*LATENT, "scratch"):
        for budget in tree.BUDGETS:
            row, = select(results.returns, variant=variant, budget=budget)
            full = 400 if variant == "lapo-no-distractors" else 200
            assert row["mean"] == pytest.approx(tree.mean_return(variant, budget))
            assert row["normalised"] == pytest.approx(100 * tree.mean_return(variant, budget) / full)
            assert row["normalised_low"] < row["normalised_iqm"] < row["normalised_high"]
    for variant, mean in tree.FULL_RETURN.items():
        row, = select(results.returns, variant=variant)
        assert (row["mean"], row["normalised"]) == pytest.approx((mean, 100))


def test_labels_used_are_the_budget_or_those_that_chose_the_slots_where_they_are_more(results):
    used = {(row["variant"], row["budget"]): row["labels"] for row in results.returns}
    for variant in ("lapo-masks", "lapo-slots", "lapo-focus", "laom-masks"):  # 4 chose their slots
        assert (used[variant, 2], used[variant, 8]) == (4, 8)
    assert (used["laom-labels", 2], used["laom-labels", 8]) == (8, 8)  # its latent actions know the largest budget
    for variant in ("lapo", "laom", "lapo-no-distractors", "scratch"):
        assert (used[variant, 2], used[variant, 8]) == (2, 8)
    assert used["bc", 0] is used["bc-no-distractors", 0] is None  # all
    assert {row["variant"]: row["labels"] for row in results.probes} == {
        "lapo": 0, "lapo-masks": 4, "lapo-slots": 4, "lapo-focus": 4, "laom": 0, "laom-masks": 4, "laom-labels": 8,
        "lapo-no-distractors": 0}


def test_generalisation_is_the_largest_budget_on_both_backgrounds(results):
    assert [row["variant"] for row in results.generalisation] == [
        name for name, row in VARIANTS.items() if row.view == "distracted"]
    for row in results.generalisation:
        assert row["budget"] == (0 if row["variant"] == "bc" else 8)
        mean = tree.mean_return(row["variant"], row["budget"])
        assert (row["train_mean"], row["test_mean"]) == pytest.approx((2 * mean, mean))


def test_without_background_videos_there_is_no_generalisation_and_all_else_is_as_with_them(written, results):
    for seed, variant in product(tree.SEEDS, VARIANTS):
        path = paths.evaluation(tree.TASK, seed, variant)
        write_csv(path, select(read_csv(path), backgrounds="test"))
    found = read()
    assert found == replace(results, generalisation=[], episodes=select(results.episodes, backgrounds="test"))
    titles, with_videos = ([table.title for table in tables(each)] for each in (found, results))
    assert titles == [title for title in with_videos if title != "Seen and unseen backgrounds"] != with_videos


def test_returns_and_generalisation_are_means_of_the_listed_episodes(results):
    for row in results.returns:
        found = select(results.episodes, variant=row["variant"], budget=row["budget"], backgrounds="test")
        assert [(each["seed"], each["episode"]) for each in found] == list(product(tree.SEEDS, range(tree.EPISODES)))
        assert np.mean([each["return"] for each in found]) == pytest.approx(row["mean"])
    for row in results.generalisation:
        found = select(results.episodes, variant=row["variant"], budget=row["budget"], backgrounds="train")
        assert np.mean([each["return"] for each in found]) == pytest.approx(row["train_mean"])


def test_a_policy_that_earns_nothing_normalises_nothing(written, monkeypatch):
    monkeypatch.setitem(tree.FULL_RETURN, "bc", 0.0)
    tree.write()
    table = read().returns
    assert all((row["normalised"] is None) == (normaliser(row["variant"]) == "bc") for row in table)


def test_every_variant_and_seed_is_walked_once(results):
    assert [(row["seed"], row["variant"]) for row in results.probes] == [
        (seed, variant) for seed in tree.SEEDS for variant in LATENT]
    assert {row["variant"] for row in results.returns} == set(VARIANTS)
    assert {(row["seeds"], row["episodes"]) for row in results.returns} == {(2, 5)}
    assert [row["chosen"] for row in results.slots] == [slot == tree.CHOSEN for slot in range(tree.SLOTS)] * 2


def test_metrics_are_means_over_seeds(results):
    table = metrics(results)
    assert table["probe"][tree.TASK] == pytest.approx(tree.PROBES)
    assert table["slots"][tree.TASK]["agent_iou"] == pytest.approx(0.5)
    assert table["return"][tree.TASK] == {"expert": 500, **tree.FULL_RETURN}
    assert table["normalised"][tree.TASK]["lapo"] == pytest.approx(100 * tree.mean_return("lapo", 8) / 200, rel=1e-3)
    assert table["recovery"][tree.TASK] == {
        "probe": {"lapo-masks": 0.5714, "lapo-slots": 0.8571, "lapo-focus": 0.4286, "laom": 0.2857,
                  "laom-labels": 0.7143, "laom-masks": 0.6429},
        "return": {"lapo-masks": 0.1429, "lapo-slots": 0.2857, "lapo-focus": 0.4286, "laom": 0.5714,
                   "laom-labels": 0.7143, "laom-masks": 0.8571}}
    assert len(json.dumps(table, indent=2).splitlines()) < 70  # a screenful


def test_measures_against_no_segmentation_are_none(written):
    tree.forget_segmentation()
    results = read()
    assert metrics(results)["slots"][tree.TASK] == dict.fromkeys(
        ["agent_iou", "agent_recall", "area", "fg_ari", "stability"])
    tree.write([1])  # a dataset that has one beside it
    assert len({frozenset(row) for row in read().slots}) == len({frozenset(row) for row in read().selections}) == 1


def test_slots_without_known_actions_have_the_columns_of_others(written):
    table = read_json(paths.slot_table(tree.TASK, 0))
    for row in table["slots"]:
        for key in ("probe_mse", "probe_r2", "vector_mse"):
            del row[key]
    write_json(paths.slot_table(tree.TASK, 0), table)
    found = read().slots
    assert len({frozenset(row) for row in found}) == 1 and found[0]["probe_mse"] is None


def test_slot_models_have_a_row_of_each_seed_as_the_report_shows_them(written, results):
    own, steve, slotcontrast = select(results.models, seed=1)
    assert own == {
        "task": tree.TASK, "seed": 1, "model": "VideoSAUR", "slot": "slot 2", "agent_iou": pytest.approx(0.4),
        "agent_recall": 0.9, "area": 0.25, "stability": 0.95, "fg_ari": 0.5, "mask_agent_iou": 0.8,
        "mask_agent_recall": 0.95, "mask_area": 0.1, "mask_vector_mse": 0.25, "probe_mse": 0.2, "probe_r2": 0.7,
        "vector_mse": 0.5, "whole_frame_mse": 0.4, "labels": 4, "restart": 1, "restart_errors": "0.4 0.3"}
    for row, (model, iou) in zip((steve, slotcontrast), tree.COMPARED.values(), strict=True):
        assert row == dict.fromkeys(own) | {
            "task": tree.TASK, "seed": 1, "model": model, "slot": "slot 1", "agent_iou": iou, "agent_recall": 0.5,
            "area": 0.25, "stability": 0.75, "fg_ari": 0.625}
    assert [row["seed"] for row in results.models] == [0, 0, 0, 1, 1, 1]
    write_csv(path := paths.reports / "models.csv", results.models)
    assert read_csv(path) == results.models
    tree.forget_segmentation()
    without = ("agent_iou", "agent_recall", "area", "stability", "fg_ari", "mask_agent_iou", "mask_agent_recall",
               "mask_area", "mask_vector_mse")
    assert read().models == [own | {"seed": seed} | dict.fromkeys(without) for seed in tree.SEEDS]


def test_models_of_one_and_of_two_chosen_slots_share_a_column_of_words(written):
    table = read_json(paths.slot_table(tree.TASK, 0))
    write_json(paths.slot_table(tree.TASK, 0), table | {"chosen": [0, 2], "chosen_probe": {}, "restart_errors": []})
    write_csv(path := paths.reports / "models.csv", read().models)
    first, *_, second = (row for row in read_csv(path) if row["model"] == "VideoSAUR")
    assert (first["slot"], second["slot"]) == ("slot 0 and 2", "slot 2")
    assert first["probe_mse"] is first["restart_errors"] is None and second["restart_errors"] == "0.4 0.3"


def test_stray_files_are_not_read(written, results):
    stray = paths.probe("walker-run", 7, "lapo")
    stray.parent.mkdir(parents=True)
    stray.write_text("not JSON")
    assert read() == results


def test_a_table_of_returns_that_was_cut_at_a_line_s_end_is_named(written):
    path = paths.evaluation(tree.TASK, 1, "lapo")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=f"{path}: {len(lines) - 2} rows of .*; delete {path} and run `dvc repro`"):
        read()


def test_missing_durations_are_none_and_missing_results_an_error(written, results):
    ocp, = select(results.durations, stage="ocp")
    assert (ocp["seconds"], ocp["mean"], ocp["runs"], ocp["of"]) == (61.0, 61.0, 1, 4)
    assert all(row["mean"] is None for row in results.durations if row["stage"] != "ocp")
    paths.probe(tree.TASK, 1, "lapo").unlink()
    with pytest.raises(UserError, match="probe.json"):
        read()


def test_durations_are_looked_up_under_the_names_that_stages_write(written):
    names = ["backgrounds", "collect-cheetah-run-clean", "slot-select-cheetah-run-1",
             "lapo-slots-cheetah-run-0-lapo-slots",
             "lapo-cheetah-run-0-lapo-masks", "lapo-focus-cheetah-run-1-lapo-focus",
             "laom-cheetah-run-0-laom-masks", "laom-labels-cheetah-run-1-laom-labels", "bc-full-cheetah-run-1-bc",
             "eval-cheetah-run-0-scratch"]
    for name in names:
        paths.duration(name).write_text(json.dumps({"scale": "small", "seconds": 1.0, "hardware": "here"}))
    assert sum(row["runs"] for row in read().durations) == 1 + len(names)
    paths.duration(names[0]).write_text(json.dumps({"scale": "tiny", "seconds": 1.0, "hardware": "here"}))
    assert sum(row["runs"] for row in read().durations) == len(names)  # not what another scale took


def test_stamp_says_scale_seeds_and_episodes(results):
    assert results.stamp == "Small scale, 2 seeds, 5 episodes"


def test_counts_and_losses_are_of_the_restart_that_was_kept(results):
    assert results.parameters == tree.PARAMETERS
    losses = select(results.losses, stage="ocp", variant="ocp", seed=0)
    assert losses[0]["loss"] == 1.0 + tree.RESTART


def test_losses_of_fine_tuning_are_of_the_largest_budget(results):
    losses = select(results.losses, stage="finetune", seed=1)
    assert {row["variant"] for row in losses} == set(FEW) and [row["loss"] for row in losses] == [8.5] * 2 * len(FEW)


def test_the_papers_tables_agree_with_the_ratios_it_prints():
    probes = {task: {name: row.paper.probe[task][0] for name, row in VARIANTS.items() if row.paper.probe}
              for task in ("cheetah-run", "walker-run", "hopper-hop", "humanoid-walk")}
    returns = {task: {name: row.paper.normalised[task][0] for name, row in VARIANTS.items() if row.paper.normalised}
               for task in probes}

    def ratios(table, task, lower):
        of_task = table[task]
        return [round(of_task["lapo"] / of_task[v] if lower else of_task[v] / of_task["lapo"], 1)
                for v in ("lapo-masks", "lapo-slots", "lapo-no-distractors")]

    assert ratios(probes, "cheetah-run", True) == [4.0, 3.6, 11.2]  # it prints 12.0 for the last, from 0.93
    assert ratios(probes, "walker-run", True) == [1.6, 1.3, 2.6]
    assert ratios(returns, "cheetah-run", False) == [1.7, 2.2, 3.0]
    assert ratios(returns, "hopper-hop", False) == [3.4, 5.0, 7.8]
    averages = {v: np.mean([row[v] for row in probes.values()]) for v in ("lapo", "lapo-masks", "lapo-slots")}
    assert {v: round(mean, 1) for v, mean in averages.items()} == {"lapo": 7.4, "lapo-masks": 2.7, "lapo-slots": 3.2}
    assert PAPER_DURATIONS["ocp"] + PAPER_DURATIONS["lapo-masks"] == 14 * 3600 + 13 * 60


def test_every_policy_is_compared_with_lapo_at_its_own_budget_and_shows_the_mean_of_each_seed(results):
    for variant in ("lapo-slots", "laom"):
        for budget in tree.BUDGETS:  # at 8 labels lapo returns more than either does at 2
            assert select(results.returns, variant=variant, budget=budget)[0]["improvement"] == 1
    assert select(results.returns, variant="lapo", budget=2)[0]["by_seed"] == "19.5 20.5"
