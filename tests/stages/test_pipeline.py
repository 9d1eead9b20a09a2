"""Every stage of dvc.yaml, once, at a tiny scale: what each writes exists and has the sizes that were asked for."""

import importlib
import json
import os
import platform
import shutil
import sys
from contextlib import chdir
from graphlib import TopologicalSorter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import yaml

from oclam import paths
from oclam.artifacts import load_tensors, open_zarr, read_csv, read_json
from oclam.datasets import open_dataset
from oclam.params import read
from oclam.policies.files import load_policies
from oclam.slices import expand, upstream
from oclam.variants import ALL_LABELS, LATENT, VARIANTS
from tests import ROOT

TASK, EPISODES, TEST_EPISODES, STEPS, SIZE, LATENT_DIM, BUDGETS = "cheetah-run", 3, 2, 24, 32, 8, [1, 2]
TINY = {
    "restarts": [0, 1],
    "env": {"image_size": SIZE, "texture_size": 16}, "backgrounds": {"videos": 2, "frames": 3},
    "collect": {"episodes": EPISODES, "test_episodes": TEST_EPISODES, "segmented_episodes": 1, "steps": STEPS},
    "encoder": {"image_size": SIZE},
    "ocp": {"slots": 3, "slot_dim": 8, "feature_hidden": 8, "decoder_hidden": 8, "decoder_layers": 1, "kept_clips": 8,
            "decoded_patches": 8, "batch_size": 2, "steps": 3, "warmup_steps": 1, "decay_steps": 3},
    "steve": {"feature_hidden": 4, "decoder_hidden": 4, "batch_size": 2, "steps": 2},
    "slot_select": {"labelled_episodes": 2, "max_slots": 1},
    "lapo": {"latent_dim": LATENT_DIM, "future_offset": 3, "batch_size": 16, "epochs": 1, "warmup_epochs": 0},
    "lapo_slots": {"hidden_dim": 8, "batch_size": 16, "epochs": 1, "warmup_epochs": 0},
    "laom": {"hidden_dim": 8, "batch_size": 16, "epochs": 1, "warmup_epochs": 0}, "laom_labels": {"batch_size": 4},
    "bc": {"batch_size": 16, "epochs": 1},
    "finetune": {"budgets": BUDGETS, "hidden_dim": 8, "batch_size": 8, "updates": 3}, "scratch": {"updates": 3},
    "eval": {"episodes": 2},
}


def run(stage):
    """The stage's main, in this process: importing torch once for all of them saves minutes."""
    _, _, module, *words = stage.cmd.split()
    with patch.object(sys, "argv", [str(ROOT / f"{module.replace('.', '/')}.py"), *words]):
        importlib.import_module("oclam.cli").run(importlib.import_module(module).main)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """{name: Stage} of a project in the working folder, all of which have run."""
    folder = tmp_path_factory.mktemp("pipeline")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in TINY.items():
        content[section] = content[section] | values if isinstance(values, dict) else values
    for name in ("encoders", "experts"):
        shutil.copytree(ROOT / "data" / name, folder / "data" / name)
    with chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(content))
        found = expand(yaml.safe_load((ROOT / "dvc.yaml").read_text()), read().model_dump())
        for name in TopologicalSorter({name: upstream(stage, found) for name, stage in found.items()}).static_order():
            run(found[name])
        yield found


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
        returns = [row["return"] for row in read_csv(paths.demonstrations(TASK, view))]
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
    rows = read_csv(paths.evaluation(TASK, 0, variant))
    assert [(row["budget"], row["episode"]) for row in rows] == [(b, e) for b in budgets for e in range(2)]
    assert all(0 <= row["return"] <= STEPS for row in rows)


def test_the_report_names_every_variant_and_its_metrics_are_numbers(stages):
    page = (paths.reports / "index.html").read_text(encoding="utf-8")
    assert all(f"<th>{variant}</th>" in page or f">{variant}<" in page for variant in LATENT)
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    assert set(metrics["probe"][TASK]) == set(LATENT)
    assert all(np.isfinite(value) for value in metrics["probe"][TASK].values())
