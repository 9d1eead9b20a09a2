"""dvc.yaml says the truth: every stage declares the parameters it reads and the modules that can change its result."""

import ast

import networkx
import pytest
import yaml
from dvc.dependency import ParamsDependency

from oclam.variants import LATENT, VARIANTS
from tests import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Modules that cannot change a number; a new progress bar need not retrain a model.
INFRASTRUCTURE = {"artifacts", "checkpoint", "cli", "curves", "errors", "machine", "params", "paths", "progress"}


def script_of(stage):
    return ROOT / f"{STAGES[stage]['cmd'].split()[2].replace('.', '/')}.py"


def source(name):
    """The file of a module such as `oclam.envs.rendering` or of a package; None when there is none."""
    path = ROOT / name.replace(".", "/")
    candidates = path.with_suffix(".py"), path / "__init__.py"
    return next((candidate for candidate in candidates if candidate.exists()), None)


def imported_files(path):
    """The files of oclam that a file's imports load, wherever the imports stand in it; packages' own files too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" if source(f"{node.module}.{alias.name}") else node.module
                      for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    names = {name for name in names if name.split(".")[0] == "oclam"}
    names |= {".".join(name.split(".")[:length]) for name in names for length in range(2, name.count(".") + 1)}
    return {source(name) for name in names - {"oclam"}}


def is_code(path):
    """Whether a file of Python has more than a docstring."""
    return path.suffix != ".py" or len(ast.parse(path.read_text()).body) > 1


def closure(path):
    """Every file of oclam that can change what the file computes, imported directly or not."""
    seen, queue = set(), imported_files(path)
    while queue:
        file = queue.pop()
        if file.relative_to(ROOT / "oclam").with_suffix("").as_posix() not in INFRASTRUCTURE and file not in seen:
            seen.add(file)
            queue |= imported_files(file)
    return {file for file in seen if is_code(file)}


def declared_code(stage):
    """The files of code that a stage depends on; of a folder all of them."""
    paths = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("oclam/", "stages/"))]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    return sorted(file for file in files if "__pycache__" not in file.parts and is_code(file))


def loaded_parameters(path):
    """The literal names in the script's call of `load`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load"]
    assert len(calls) <= 1, f"{path.name} calls load more than once"
    return [ast.literal_eval(argument) for call in calls for argument in call.args]


@pytest.mark.parametrize("stage", STAGES)
def test_declares_the_code_it_runs_and_no_other(stage):
    templates = {file for file in declared_code(stage) if file.suffix == ".j2"}
    declared, needed = declared_code(stage), {script_of(stage)} | closure(script_of(stage)) | templates
    add, remove = ([file.name for file in files] for files in (needed - set(declared), set(declared) - needed))
    assert declared == sorted(needed), f"dvc.yaml, {stage}: add {add}, remove {remove}"


@pytest.mark.parametrize("stage", STAGES)
def test_gives_its_script_as_many_arguments_as_it_takes(stage):
    call, = (node for node in ast.walk(ast.parse(script_of(stage).read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "arguments")
    assert len(call.args) == len(STAGES[stage]["cmd"].split()[3:])


@pytest.mark.parametrize("stage", STAGES)
def test_declares_the_parameters_it_reads(stage):
    assert sorted(STAGES[stage].get("params", [])) == sorted(loaded_parameters(script_of(stage)))


def test_every_variant_has_its_stages_and_no_stage_has_another():
    def variants(*stages):
        return {variant for stage in stages for variant in STAGES[stage]["matrix"]["variant"]}

    assert {name: variants(name) for name in STAGES if name.startswith(("lapo", "laom"))} == {
        name: {name} for name in LATENT}
    assert variants("bc", "bc-clean") == variants("finetune", "finetune-clean") == set(LATENT)
    assert variants("eval", "eval-clean") == set(VARIANTS)
    for stage in (*LATENT, "bc", "bc-clean", "finetune", "finetune-clean", "eval", "eval-clean"):
        for variant in variants(stage):
            assert any("clean.zarr" in dep or "-clean" in stage for dep in STAGES[stage]["deps"]) == (
                VARIANTS[variant].view == "clean")
            if stage in LATENT:
                masked = any("selection.zarr" in dep for dep in STAGES[stage]["deps"])
                assert masked == VARIANTS[variant].on_slots


def test_every_script_is_a_stage():
    assert all(stage["cmd"].startswith("python -m stages.") for stage in STAGES.values())
    assert {path.name for path in (ROOT / "stages").glob("[!_]*.py")} == {script_of(stage).name for stage in STAGES}


MODELS = ("cnn", "encoders.frozen", "laom.models", "latent_actions.models", "policies.networks", "slots.attention",
          "slots.published_steve", "slots.slotcontrast", "slots.steve", "slots.videosaur")


@pytest.mark.parametrize("model", MODELS)
def test_models_import_neither_files_nor_data_nor_environments(model):
    models = {source(f"oclam.{name}") for name in (*MODELS, "errors")}
    assert {file for file in imported_files(source(f"oclam.{model}")) if is_code(file)} <= models


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


CLONED = tuple(variant for variant in LATENT if VARIANTS[variant].view == "distracted")
FINETUNED_ON = {"report", *instances("eval", *CLONED), *instances("eval-clean", "lapo-no-distractors")}
CLONED_ON = {*FINETUNED_ON, *instances("finetune", *CLONED), *instances("finetune-clean", "lapo-no-distractors")}


def test_latent_dim_runs_the_latent_action_models_and_what_lies_downstream(graph):
    lapo = set().union(*(instances(variant, variant) for variant in LATENT))
    clones = instances("bc", *CLONED) | instances("bc-clean", "lapo-no-distractors")
    assert rerun_by(graph, by_parameter("lapo.latent_dim")) == lapo | clones | CLONED_ON


def test_finetune_learning_rate_runs_what_learns_from_few_labels_and_what_lies_downstream(graph):
    scratch = {"scratch@cheetah-run-0", *instances("eval", "scratch")}
    assert rerun_by(graph, by_parameter("finetune.learning_rate")) == scratch | CLONED_ON
    assert rerun_by(graph, by_parameter("finetune.updates")) == CLONED_ON
    assert rerun_by(graph, by_parameter("scratch.updates")) == scratch | {"report"}


def test_focus_weight_runs_one_variant(graph):
    focus = {f"{stage}@cheetah-run-0-lapo-focus" for stage in ("lapo-focus", "bc", "finetune", "eval")}
    assert rerun_by(graph, by_parameter("lapo_focus.background_weight")) == focus | {"report"}


def test_labels_of_laom_run_one_variant_and_its_settings_all_of_them(graph):
    def names(variant):
        return set().union(*(instances(stage, variant) for stage in (variant, "bc", "finetune", "eval")))

    assert rerun_by(graph, by_parameter("laom_labels.coefficient")) == names("laom-labels") | {"report"}
    assert rerun_by(graph, by_parameter("laom.target_rate")) == {"report"}.union(
        *map(names, ("laom", "laom-labels", "laom-masks")))


def test_what_trains_steve_runs_it_alone_and_what_shapes_it_ocp_too(graph):
    assert rerun_by(graph, by_parameter("steve.steps")) == {"steve@cheetah-run-0", "report"}
    assert {"steve@cheetah-run-0", "ocp@cheetah-run-0-0"} < rerun_by(graph, by_parameter("steve.feature_hidden"))
    assert "steve@cheetah-run-0" not in rerun_by(graph, by_parameter("ocp.model"))
    assert rerun_by(graph, by_parameter("slotcontrast.steps")) == {"slotcontrast@cheetah-run-0", "report"}
    assert "slotcontrast@cheetah-run-0" not in rerun_by(graph, by_parameter("steve.feature_hidden"))


def test_the_code_of_a_plot_runs_the_report_alone(graph):
    assert rerun_by(graph, by_file("oclam/report")) == {"report"}


def test_the_code_of_the_selection_trains_no_object_centric_model(graph):
    stages = {name.split("@")[0] for name in rerun_by(graph, by_file("oclam/agent"))}
    assert "slot-select" in stages and not stages & {"ocp", "slots"}
    assert "ocp" not in {name.split("@")[0] for name in rerun_by(graph, by_file("oclam/agent/selection.py"))}
    assert "ocp" not in {name.split("@")[0] for name in rerun_by(graph, by_parameter("slot_select.labelled_episodes"))}


def test_nothing_downstream_touches_data_experts_or_encoder(graph):
    learning = [f"{section}.learning_rate" for section in ("ocp", "lapo", "lapo_slots", "bc", "finetune")]
    for key in [*learning, "slot_select.method", "eval.episodes"]:
        stages = {name.split("@")[0] for name in rerun_by(graph, by_parameter(key))}
        assert not stages & {"backgrounds", "expert", "encoder", "collect", "collect-clean"}, key
