"""The whole pipeline at a tiny scale, once in a test session: every stage of dvc.yaml in a project of its own."""

import importlib
import shutil
import sys
from contextlib import chdir
from graphlib import TopologicalSorter
from pathlib import Path
from unittest.mock import patch

import yaml

from oclam.params import read
from oclam.slices import Stage, expand, upstream
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
    "slotcontrast": {"steps": 2},
    "slot_select": {"labelled_episodes": 2, "max_slots": 1},
    "lapo": {"latent_dim": LATENT_DIM, "future_offset": 3, "batch_size": 16, "epochs": 1, "warmup_epochs": 0},
    "lapo_slots": {"hidden_dim": 8, "batch_size": 16, "epochs": 1, "warmup_epochs": 0},
    "laom": {"hidden_dim": 8, "batch_size": 16, "epochs": 1, "warmup_epochs": 0}, "laom_labels": {"batch_size": 4},
    "bc": {"batch_size": 16, "epochs": 1},
    "finetune": {"budgets": BUDGETS, "hidden_dim": 8, "batch_size": 8, "updates": 3}, "scratch": {"updates": 3},
    "eval": {"episodes": 2},
}


def run(stage: Stage) -> None:
    """The stage's main, in this process: importing torch once for all of them saves minutes."""
    _, _, module, *words = stage.cmd.split()
    with patch.object(sys, "argv", [str(ROOT / f"{module.replace('.', '/')}.py"), *words]):
        importlib.import_module("oclam.cli").run(importlib.import_module(module).main)


def expanded() -> dict[str, Stage]:
    """{name: Stage} of dvc.yaml under the working folder's parameters, each after those that it needs."""
    found = expand(yaml.safe_load((ROOT / "dvc.yaml").read_text()), read().model_dump())
    order = TopologicalSorter({name: upstream(stage, found) for name, stage in found.items()}).static_order()
    return {name: found[name] for name in order}


def build(folder: Path, **changed) -> None:
    """Write the project's parameters, changed as TINY and then these sections say, and run every stage."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in (*TINY.items(), *changed.items()):
        content[section] = content[section] | values if isinstance(values, dict) else values
    for name in ("encoders", "experts"):
        shutil.copytree(ROOT / "data" / name, folder / "data" / name)
    shutil.copy(ROOT / "dvc.yaml", folder)
    with chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(content))
        for stage in expanded().values():
            run(stage)
