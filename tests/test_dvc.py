"""dvc.yaml says the truth: every stage declares the parameters it reads and the modules that can change its result."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What moves files and words about, and cannot change a result; a new progress bar need not retrain a model.
INFRASTRUCTURE = {"checkpoint", "cli", "errors", "params", "paths", "progress"}


def script_of(stage):
    return ROOT / STAGES[stage]["cmd"].split()[1]


def imported_modules(path):
    """The oclam modules that a file names in its imports, wherever they stand in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "oclam":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oclam."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("oclam.")}
    return {name for name in names if (ROOT / "oclam" / f"{name}.py").exists()}


def closure(path):
    """Every module that the file imports, directly or not, stopping at infrastructure."""
    seen, queue = set(), imported_modules(path)
    while queue:
        name = queue.pop()
        seen.add(name)
        if name not in INFRASTRUCTURE:
            queue |= imported_modules(ROOT / "oclam" / f"{name}.py") - seen
    return seen - INFRASTRUCTURE


def loaded_parameters(path):
    """The literal names in the script's call of `load`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load"]
    assert len(calls) <= 1, f"{path.name} calls load more than once"
    return [ast.literal_eval(argument) for call in calls for argument in call.args]


@pytest.mark.parametrize("stage", STAGES)
def test_declares_the_code_it_runs(stage):
    path = script_of(stage)
    expected = {f"stages/{path.name}"} | {f"oclam/{name}.py" for name in closure(path)}
    assert {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_declares_the_parameters_it_reads(stage):
    assert sorted(STAGES[stage].get("params", [])) == sorted(loaded_parameters(script_of(stage)))


def test_every_script_is_a_stage():
    assert {path.name for path in (ROOT / "stages").glob("*.py")} == {script_of(stage).name for stage in STAGES}


def test_models_never_import_data_or_environments():
    worlds = {"backgrounds", "collect", "datasets", "distractors", "envs", "paths", "params", "render"}
    for model in ("bc", "cnn", "encoders", "lapo", "ocp", "slot_attention"):
        assert not imported_modules(ROOT / "oclam" / f"{model}.py") & worlds, model
