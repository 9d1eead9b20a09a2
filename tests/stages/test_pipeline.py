"""Every stage of dvc.yaml, once, at a tiny scale: what each writes exists and has the sizes that were asked for."""

import json
import os
import platform
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from oclam import paths
from oclam.artifacts import load_tensors, open_zarr, read_csv, read_json
from oclam.datasets import open_dataset
from oclam.policies.files import load_policies
from oclam.variants import ALL_LABELS, LATENT, VARIANTS
from tests.stages.tiny import BUDGETS, EPISODES, LATENT_DIM, SIZE, STEPS, TASK, TEST_EPISODES, expanded


@pytest.fixture(scope="module")
def stages(pipeline):
    """{name: Stage} of the project in the working folder, all of which have run."""
    with chdir(pipeline):
        yield expanded()


def test_every_stage_wrote_all_that_it_declares_and_left_nothing_unfinished(stages):
    assert [out for stage in stages.values() for out in stage.outs if not Path(out).exists()] == []
    assert [path.name for path in Path(".resume").iterdir()] == ["locks"] and not list(Path().rglob("*.tmp"))
    declared = {Path(out) for stage in stages.values() for out in stage.outs}
    written = {file for file in Path("data").rglob("*") if file.is_file()}
    shipped = {file for name in ("encoders", "experts") for file in Path("data", name).rglob("*")}
    assert [file for file in written - shipped if not declared & {file, *file.parents}] == []


def test_every_stage_recorded_its_duration(stages):
    records = [read_json(file) for file in (paths.reports / "durations").iterdir()]
    assert len(records) == len(stages)
    assert sum(record["seconds"] for record in records) > 1 and max(record["seconds"] for record in records) < 600
    assert {record["hardware"] for record in records} == {f"{len(os.sched_getaffinity(0))} {platform.machine()} cores"}


def test_datasets_have_the_sizes_that_were_asked_for(stages):
    for view in ("distracted", "clean"):
        dataset = open_dataset(paths.dataset(TASK, view))
        assert dataset.pixels.shape == (EPISODES + TEST_EPISODES, STEPS, SIZE, SIZE, 3)
        assert np.abs(dataset.actions).max() <= 1 and dataset.attrs["view"] == view
        returns = [row["return"] for row in read_csv(paths.demonstration_returns(TASK, view))]
        np.testing.assert_allclose(returns, dataset.rewards.sum(1), rtol=1e-5)
    both = [open_dataset(paths.dataset(TASK, view)).states for view in ("distracted", "clean")]
    np.testing.assert_array_equal(both[0][:, 0], both[1][:, 0])  # one seed, one start


def test_slots_and_selection_agree(stages):
    slots, selection = open_zarr(paths.slots(TASK, 0)), open_zarr(paths.selection(TASK, 0))
    table = read_json(paths.slot_table(TASK, 0))
    assert slots["slots"].shape == (5, STEPS, 3, 8) and slots["masks"].shape == (5, STEPS, 3, 8, 8)
    assert table["restart"] == slots.attrs["restart"] == int(np.argmin(table["restart_errors"]))
    assert selection["slots"].shape == (5, STEPS, 8) and table["mask"].keys() >= {"vector_mse", "agent_iou"}


@pytest.mark.parametrize("variant", LATENT)
def test_latent_actions_have_their_width_and_probe(stages, variant):
    latents, probe = open_zarr(paths.latents(TASK, 0, variant))["latents"], read_json(paths.probe(TASK, 0, variant))
    assert latents.shape == (EPISODES + TEST_EPISODES, STEPS - 1, LATENT_DIM) and np.isfinite(latents[:]).all()
    assert len(probe["ridge_mse_per_dim"]) == 6
    assert probe["ridge_mse"] == pytest.approx(np.mean(probe["ridge_mse_per_dim"]))
    weights, _ = load_tensors(paths.lapo(TASK, 0, variant))
    count = read_json(paths.parameters(paths.lapo(TASK, 0, variant)))
    assert count["total"] == count["trainable"] == sum(
        tensor.numel() for name, tensor in weights.items() if name != "centre")  # a buffer of laom


@pytest.mark.parametrize("variant", VARIANTS)
def test_policies_and_returns_are_there_for_every_budget(stages, variant):
    budgets = [0] if variant in ALL_LABELS else BUDGETS
    policies, cards = load_policies(paths.policies(TASK, 0, variant), task=TASK, variant=variant)
    assert [card.budget for card in cards] == budgets and len(policies) == len(budgets)
    if VARIANTS[variant].labels == "few":
        curves = read_csv(paths.log(paths.policies(TASK, 0, variant)))
        assert list(dict.fromkeys(row["budget"] for row in curves)) == budgets
    rows = read_csv(paths.evaluation(TASK, 0, variant))
    asked = [("test", budget) for budget in budgets]
    if VARIANTS[variant].view == "distracted":
        asked.insert(0, ("train", budgets[-1]))
    assert [(row["backgrounds"], row["budget"], row["episode"]) for row in rows] == [
        (*pair, episode) for pair in asked for episode in range(2)]
    assert all(0 <= row["return"] <= STEPS for row in rows)


def test_the_report_names_every_variant_and_its_metrics_are_numbers(stages):
    page = (paths.reports / "index.html").read_text(encoding="utf-8")
    assert all(f"<th>{variant}</th>" in page or f">{variant}<" in page for variant in LATENT)
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    assert set(metrics["probe"][TASK]) == set(LATENT)
    assert all(np.isfinite(value) for value in metrics["probe"][TASK].values())
