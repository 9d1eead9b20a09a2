"""dvc.yaml says the truth: every stage declares the parameters it reads and the modules that can change its result."""

import ast
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What moves files and words about, and cannot change a result; a new progress bar need not retrain a model.
INFRASTRUCTURE = {"checkpoint", "cli", "errors", "memory", "params", "paths", "progress"}


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
    deps = STAGES[stage]["deps"]
    assert {dep for dep in deps if dep.endswith(".py")} == expected
    assert len(set(deps)) == len(deps)


@pytest.mark.parametrize("stage", STAGES)
def test_declares_the_parameters_it_reads(stage):
    assert sorted(STAGES[stage].get("params", [])) == sorted(loaded_parameters(script_of(stage)))


def test_every_script_is_a_stage():
    assert {path.name for path in (ROOT / "stages").glob("*.py")} == {script_of(stage).name for stage in STAGES}


def test_models_never_import_data_or_environments():
    worlds = {"backgrounds", "collect", "datasets", "distractors", "envs", "paths", "params", "render"}
    for model in ("bc", "cnn", "encoders", "lapo", "ocp", "slot_attention", "steve"):
        assert not imported_modules(ROOT / "oclam" / f"{model}.py") & worlds, model


@pytest.fixture(scope="module")
def graph():
    return Repo(ROOT).index.graph  # an edge points from a stage to one that it depends on


def rerun_by(graph, changed):
    """Names of the stages that run again when `changed(dependency)` says that a dependency changed."""
    stages = {stage for stage in graph if any(changed(dependency) for dependency in stage.deps)}
    return {stage.addressing for stage in stages.union(*(networkx.ancestors(graph, stage) for stage in stages))}


def by_parameter(key):
    prefixes = {".".join(key.split(".")[:length]) for length in range(1, key.count(".") + 2)}
    return lambda dependency: isinstance(dependency, ParamsDependency) and prefixes & set(dependency.params)


def by_file(path):
    return lambda dependency: dependency.def_path == path


def instances(stage, *variants):
    return {f"{stage}@cheetah-run-0-{variant}" for variant in variants}


CLONED = ("lapo", "lapo-slots", "lapo-masks", "lapo-focus")
FINETUNED_ON = {"report", *instances("eval", *CLONED), *instances("eval-clean", "lapo-no-distractors")}
CLONED_ON = {*FINETUNED_ON, *instances("finetune", *CLONED), *instances("finetune-clean", "lapo-no-distractors")}


def test_latent_dim_runs_the_latent_action_models_and_what_lies_downstream(graph):
    lapo = {f"{variant}@cheetah-run-0" for variant in (*CLONED, "lapo-no-distractors")}
    clones = instances("bc", *CLONED) | instances("bc-clean", "lapo-no-distractors")
    assert rerun_by(graph, by_parameter("lapo.latent_dim")) == lapo | clones | CLONED_ON


def test_finetune_learning_rate_runs_what_learns_from_few_labels_and_what_lies_downstream(graph):
    scratch = {"scratch@cheetah-run-0", *instances("eval", "scratch")}
    assert rerun_by(graph, by_parameter("finetune.learning_rate")) == scratch | CLONED_ON
    assert rerun_by(graph, by_parameter("finetune.updates")) == CLONED_ON
    assert rerun_by(graph, by_parameter("scratch.updates")) == scratch | {"report"}


def test_focus_weight_runs_one_variant(graph):
    focus = {f"{stage}@cheetah-run-0-lapo-focus" for stage in ("bc", "finetune", "eval")} | {"lapo-focus@cheetah-run-0"}
    assert rerun_by(graph, by_parameter("lapo_focus.background_weight")) == focus | {"report"}


def test_what_trains_steve_runs_it_alone_and_what_shapes_it_ocp_too(graph):
    assert rerun_by(graph, by_parameter("steve.steps")) == {"steve@cheetah-run-0", "report"}
    assert {"steve@cheetah-run-0", "ocp@cheetah-run-0"} < rerun_by(graph, by_parameter("steve.feature_hidden"))
    assert "steve@cheetah-run-0" not in rerun_by(graph, by_parameter("ocp.model"))


def test_the_code_of_a_plot_runs_the_report_alone(graph):
    assert rerun_by(graph, by_file("oclam/figures.py")) == {"report"}


def test_nothing_downstream_touches_data_experts_or_encoder(graph):
    learning = [f"{section}.learning_rate" for section in ("ocp", "lapo", "lapo_slots", "bc", "finetune")]
    for key in [*learning, "slot_select.method", "eval.episodes"]:
        stages = {name.split("@")[0] for name in rerun_by(graph, by_parameter(key))}
        assert not stages & {"backgrounds", "expert", "encoder", "collect", "collect-clean"}, key
