"""The whole pipeline at a tiny scale, once in a test session: every stage of dvc.yaml in a project of its own."""

import importlib
import shutil
import sys
from contextlib import chdir
from graphlib import TopologicalSorter
from pathlib import Path
from unittest.mock import patch

import yaml

from oclam.graph import Stage, expand, upstream
from oclam.params import read
from tests import ROOT

TINY = yaml.safe_load((ROOT / "params" / "tiny.yaml").read_text())
del TINY["base"]
TASK, STEPS, SIZE = "cheetah-run", TINY["collect"]["steps"], TINY["env"]["image_size"]
EPISODES, TEST_EPISODES = TINY["collect"]["episodes"], TINY["collect"]["test_episodes"]
LATENT_DIM, BUDGETS = TINY["lapo"]["latent_dim"], TINY["finetune"]["budgets"]


def run(stage: Stage) -> None:
    """The stage's main, in this process: importing torch once for all of them saves minutes."""
    with patch.object(sys, "argv", [str(ROOT / f"stages/{stage.script}.py"), *stage.words]):
        importlib.import_module("oclam.cli").run(importlib.import_module(f"stages.{stage.script}").main)


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
