import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import parse_yaml

from oclam.cli import only_one
from oclam.errors import UserError
from oclam.params import Params, _parsed, load, main, read, replace
from tests import ROOT

SCALES = sorted((ROOT / "params").glob("*.yaml"))
OVERLAYS = [path for path in SCALES if "\nbase: " in path.read_text()]


def flat(values, prefix=""):
    """Every parameter by its full name; free tables such as hyperparameters are one parameter."""
    found = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in ("training", "manual")
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.name)
def test_every_parameter_file_loads_under_its_own_name(path):
    assert read(path).scale == path.stem


def test_the_paper_s_file_is_whole():
    small, paper = (flat(yaml.safe_load((ROOT / name).read_text())) for name in ("params.yaml", "params/paper.yaml"))
    # What a file does not name, DVC does not watch.
    assert paper.keys() == small.keys() == flat(read(ROOT / "params.yaml").model_dump()).keys()


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/*/params.yaml")), ids=lambda path: path.parent.name)
def test_published_parameters_can_be_read_and_are_written_whole(path, tmp_path):
    target = tmp_path / "params.yaml"
    shutil.copy(path, target)
    replace(path, target)
    assert read(target) == read(path)
    assert "extras" in yaml.safe_load(path.read_text()) or all(dict(read(path).extras).values())  # before it, all ran
    assert yaml.safe_load(target.read_text()).keys() == Params.model_fields.keys()


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_has_only_what_differs_and_keeps_the_rest(path):
    small, changed = (flat(read(name).model_dump()) for name in (ROOT / "params.yaml", path))
    written = flat(yaml.safe_load(path.read_text()))
    del written["base"]
    assert {key for key in small if small[key] != changed[key]} == written.keys()
    assert {key: changed[key] for key in written} == written


def project(tmp_path, monkeypatch):
    """A repository with the parameter files alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    for path in (ROOT / "params.yaml", *SCALES):
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], check=True)


def test_another_scale_becomes_the_pipeline_s_and_no_change_is_lost(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    study, small, target = read("params/study.yaml"), read(), Path("params.yaml")
    replace(Path("params/study.yaml"))
    assert read() == study
    assert read("params/study.yaml") == study  # on its own resolved values, too
    with pytest.raises(UserError, match="params/study-cpu.yaml: its base holds the scale study now"):
        read("params/study-cpu.yaml")
    replace(Path("params/paper.yaml"))  # of what the command itself wrote nothing is lost
    assert read() == read("params/paper.yaml")
    subprocess.run(["git", "checkout", "-q", "params.yaml"], check=True)
    target.write_text(yaml.safe_dump(small.model_dump()))  # as `dvc exp run -S` leaves it: no comments, the same values
    replace(Path("params/paper.yaml"))
    assert target.read_text() == Path("params/paper.yaml").read_text()


def test_a_scale_may_change_another(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    expected = read("params/tiny.yaml").model_dump() | {"scale": "mine", "seeds": [7]}
    Path("params/mine.yaml").write_text("base: tiny.yaml\nscale: mine\nseeds: [7]\n")
    for _ in range(2):  # on its own resolved values, too
        assert read("params/mine.yaml").model_dump() == expected
        replace(Path("params/mine.yaml"))


def test_what_a_scale_no_longer_says_is_not_kept_from_its_last_use(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    overlay = Path("params/study-cpu.yaml")
    small, epochs = read().bc.epochs, read(overlay).bc.epochs
    replace(overlay)
    overlay.write_text(re.sub(r"\nbc:\n.*\n", "\n", overlay.read_text()))
    replace(overlay)
    assert read().bc.epochs == small != epochs


def test_an_edit_of_params_yaml_after_a_change_of_scale_is_not_lost(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    overlay, target = Path("params/study-cpu.yaml"), Path("params.yaml")
    replace(overlay)
    target.write_text(re.sub(r"(\nseeds:).*\n(- .*\n)*", r"\1 [7]\n", target.read_text()))
    assert read().seeds == [7]
    with pytest.raises(UserError, match="it has values that no commit has"):
        replace(overlay)
    assert read().seeds == [7]


def test_parameters_stay_while_stages_run_that_would_read_them(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["params", "params/tiny.yaml"])
    with only_one("pipeline"), pytest.raises(UserError, match="pipeline is already running in this folder"):
        main()
    assert read().scale == "small"
    main()
    assert read().scale == "tiny"


@pytest.mark.parametrize("installed", [True, False])
def test_no_value_is_lost_without_git(tmp_path, monkeypatch, installed):
    project(tmp_path, monkeypatch)
    shutil.rmtree(".git")
    if not installed:
        monkeypatch.setenv("PATH", "")
    text = Path("params.yaml").read_text()
    with pytest.raises(UserError, match="params.yaml: it has values that no commit has; commit them"):
        replace(Path("params/paper.yaml"))
    assert Path("params.yaml").read_text() == text
    shutil.copy("params/paper.yaml", "params.yaml")
    replace(Path("params/paper.yaml"))  # nothing to lose


@pytest.mark.parametrize(("override", "value"), [
    ("lapo.learning_rate=0.00001", 1e-5), ("lapo.learning_rate=1.0e-5", 1e-5), ("lapo.learning_rate=3e-4", 3e-4),
    ("finetune.budgets=[1,2]", [1, 2]), ("ocp.kept_clips=null", None), ("compute.compile=true", True),
    ("expert.training.cheetah-run.hyperparameters.learning_rate=0.00002", 2e-5)])
def test_what_dvc_writes_for_an_experiment_is_read(tmp_path, override, value):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    apply_overrides(path, [override])
    found = read(path).model_dump()
    assert value_of(found, override.partition("=")[0]) == value
    assert value_of(read(ROOT / "params.yaml", [override]).model_dump(), override.partition("=")[0]) == value


PAPER = {  # Tables 4 and 6 to 8 and section 4 of the paper
    "tasks": ["cheetah-run", "walker-run", "hopper-hop", "humanoid-walk"], "seeds": [0, 1, 2], "restarts": [0],
    "compute.precision": "bfloat16",
    "env.image_size": 64, "env.background": True, "env.background_dynamic": True,
    "env.color_scale": 0.1, "env.color_dynamic": True, "env.camera_scale": 0.1, "env.camera_dynamic": True,
    "backgrounds.source": "davis", "backgrounds.videos": 60, "collect.episodes": 5000, "collect.steps": 1000,
    "collect.action_noise": 0,
    "encoder.source": "hub", "encoder.name": "vit_base_patch8_224.dino", "encoder.image_size": 224,
    "ocp.model": "videosaur", "ocp.slots": 4, "ocp.slot_dim": 128, "ocp.feature_hidden": 1536, "ocp.clip_length": 3,
    "ocp.decoder_hidden": 1024, "ocp.decoder_layers": 4, "ocp.batch_size": 128, "ocp.steps": 100000,
    "ocp.learning_rate": 3e-4, "ocp.warmup_steps": 2500, "ocp.decay_steps": 100000, "ocp.clip_norm": 0.05,
    "ocp.similarity_weight": 0.1, "ocp.similarity_temperature": 0.075, "ocp.reconstruction_weight": 0,
    "ocp.contrast_weight": 0.5, "ocp.contrast_temperature": 0.1,  # SlotContrast's
    "ocp.published": True, "slots.vectors": "attention",
    "ocp.kept_clips": None, "ocp.masks": "decoder", "ocp.window": None,
    "steve.published": True, "steve.batch_size": 24, "steve.steps": 200000, "steve.learning_rate": 3e-4,
    "steve.warmup_steps": 30000, "steve.decay_steps": 250000,
    "slotcontrast.steps": 50000,
    "lapo_slots.batch_size": 8192, "lapo_slots.hidden_dim": 1024, "lapo_slots.epochs": 30, "lapo_slots.expansion": 4,
    "lapo_slots.learning_rate": 5e-5, "lapo_slots.warmup_epochs": 3, "lapo_slots.model": "lapo",
    "lapo.future_offset": 10,
    "lapo.latent_dim": 8192, "lapo.batch_size": 512, "lapo.epochs": 10, "lapo.frame_stack": 3, "lapo.encoder_scale": 6,
    "lapo.residual_blocks": 2, "lapo.learning_rate": 5e-5, "lapo.warmup_epochs": 3,
    "bc.batch_size": 512, "bc.epochs": 10, "bc.frame_stack": 3, "bc.encoder_scale": 32, "bc.residual_blocks": 2,
    "bc.learning_rate": 1e-4, "bc.warmup_epochs": 0, "bc.cells": 1, "bc.published": True,
    "finetune.budgets": [2, 4, 8, 16, 32, 64, 128], "finetune.batch_size": 512, "finetune.hidden_dim": 256,
    "finetune.learning_rate": 3e-4, "finetune.updates": 2500, "finetune.unfreeze": False,
    "finetune.decoder_init": "default",
    "finetune.epochs": 0, "finetune.loss": "squares",
    "scratch.updates": 2500, "scratch.epochs": 0,
    "env.humanoid_camera": "front", "eval.episodes": 25, "eval.backgrounds": "train", "eval.seed": 0,
}


def value_of(values, key):
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize("key", PAPER)
def test_paper_yaml_holds_the_paper_s_value(key):
    assert value_of(read(ROOT / "params/paper.yaml").model_dump(), key) == PAPER[key]


WRONG = {  # key to change: what is given, what the line must say
    "lapo.latent_dimension": (1024, "unknown parameter; allowed here are latent_dim,"),
    "lappo": ({"latent_dim": 3}, "unknown parameter; allowed here are scale, tasks,"),
    "expert.training.cheetah-run.step": (3, "unknown parameter; allowed here are algorithm, steps,"),
    "lapo": (3, "3 given, should be a section with latent_dim,"),
    "lapo.frame_stack": (0, "0 given, should be greater than or equal to 1"),
    "bc.frame_stack": (True, "True given, should be a valid integer"),
    "lapo.batch_size": (128.0, "128.0 given, should be a valid integer"),
    "bc.learning_rate": ("1e-4x", "'1e-4x' given, should be a valid number"),
    "finetune.learning_rate": (0, "0 given, should be greater than 0"),
    "ocp.clip_norm": (float("inf"), "inf given, should be a finite number"),
    "ocp.contrast_temperature": (0, "0 given, should be greater than 0"),
    "ocp.contrast_weight": (-0.5, "-0.5 given, should be greater than or equal to 0"),
    "ocp.slot_dim": (63, "63 given, should be a multiple of 4"),
    "env.image_size": (60, "60 given, should be a multiple of 8"),
    "env.color_scale": (1.5, "1.5 given, should be less than or equal to 1"),
    "env.renderer": ("Fast", "'Fast' given, should be 'fast', 'shadows' or 'reference'"),
    "expert.training.hopper-hop.algorithm": ("ppo", "'ppo' given, should be 'PPO'"),
    "expert.training.hopper-hop.hyperparameters.n_steps": ({}, "{} given, should be one of int | float |"),
    "tasks": ("cheetah-run", "'cheetah-run' given, should be a valid list"),
    "seeds": ([], "[] given, list should have at least 1 item"),
    "compute.compile": ("yes", "'yes' given, should be a valid boolean"),
    "compute.threads": (0, "0 given, should be greater than or equal to 1"),
    "bc.batch_size": (10**9, "1000000000 given, should be less than or equal to 65536"),
    "lapo.learning_rate": (1e300, "1e+300 given, should be less than or equal to 10"),
    "encoder.image_size": (10**6, "1000000 given, should be less than or equal to 2048"),
    "collect.steps": (1001, "1001 given, should be less than or equal to 1000"),
    "ocp.slots": (1000, "1000 given, should be less than or equal to 64"),
    "expert.training.walker-run.hyperparameters.ent_coef": (float("nan"), "nan given, should be"),
    "lapo_focus.background_weight": (None, "None given, should be a valid number"),
}

# The default's own numbers may change; the lines of IMPOSSIBLE were written against these.
STANDARD = {"collect.episodes": 20, "collect.test_episodes": 4, "collect.segmented_episodes": 2, "collect.steps": 1000,
            "ocp.slots": 6, "bc.epochs": 2, "finetune.budgets": [2, 8, 16],
            "slot_select.labelled_episodes": 4}

IMPOSSIBLE = {  # several changes that do not go together: the key at fault, what the line must say
    "tasks": ({"tasks": ["cheetah"]}, "'cheetah' given, a task is domain-task"),
    "tasks.outside": ({"tasks": ["../x-y"]}, "'../x-y' given, a task is domain-task"),
    "expert.training.cheetah-run.demonstrator": (
        {"expert.training.cheetah-run.demonstrator": "walker.safetensors"},
        "'walker.safetensors' given, only SAC and CrossQ can use a demonstrator"),
    "expert.training.hopper-hop.demonstrator": (
        {"expert.training.hopper-hop.demonstrator": "data/experts/../hopper.safetensors", "expert.train": True,
         "tasks": ["hopper-hop"]},
        "'data/experts/../hopper.safetensors' given, put it in expert.folder, data/experts, where DVC sees its "
        "changes"),
    "ocp.window": ({"ocp.window": 1001}, "1001 given, an episode has collect.steps = 1000"),
    "slot_select.manual.walker-run": ({"slot_select.manual": {"walker-run": [0]}}, "[0] given, tasks are cheetah-run"),
    "seeds": ({"seeds": [0, 0]}, "[0, 0] given, each value may appear only once"),
    "finetune.budgets": ({"finetune.budgets": [2, 64]}, "[2, 64] given, at most collect.episodes = 20"),
    "slot_select.manual.cheetah-run": ({"slot_select.manual": {"cheetah-run": [0, 6]}}, "[0, 6] given, allowed are "
                                       "distinct indices 0..5"),
    "slot_select.max_slots": ({"slot_select.max_slots": 7}, "7 given, ocp.slots is 6"),
    "slot_select.labelled_episodes": ({"slot_select.labelled_episodes": 21}, "21 given, collect.episodes is 20"),
    "collect.segmented_episodes": ({"collect.segmented_episodes": 5}, "5 given, collect.test_episodes is 4"),
    "collect.test_episodes": ({"collect.test_episodes": 1}, "1 given, should be greater than or equal to 2"),
    "encoder.distill_batch": ({"encoder.distill_frames": 8}, "16 given, encoder.distill_frames is 8"),
    "lapo.future_offset": ({"lapo.future_offset": 1000}, "1000 given, an episode has collect.steps = 1000"),
    "bc.warmup_epochs": ({"bc.warmup_epochs": 5}, "5.0 given, bc.epochs is 2.0"),
    "ocp.similarity_weight": ({"ocp.similarity_weight": 0, "ocp.reconstruction_weight": 0}, "0.0 given, it and"),
    "bc.batch_size": ({"compute.devices": 2, "bc.batch_size": 31}, "31 given, compute.devices = 2 must divide it"),
    "ocp.batch_size": ({"compute.devices": 5}, "24 given, compute.devices = 5 must divide it"),
    "compute.devices": ({"compute.devices": 2, "ocp.model": "steve"}, "2 given, ocp.model steve needs its whole "),
    "compute.devices.contrast": ({"compute.devices": 2, "ocp.model": "slotcontrast"},
                                 "2 given, ocp.model slotcontrast needs its whole batch at once, so it trains on 1"),
    "ocp.decay_steps": ({"ocp.warmup_steps": 300}, "300 given, more than ocp.warmup_steps = 300 is needed"),
    "steve.decay_steps": ({"steve.decay_steps": 20}, "20 given, more than steve.warmup_steps = 30 is needed"),
    "ocp.decoded_patches": ({"ocp.model": "steve", "ocp.masks": "attention", "steve.published": True},
                            "64 given, steve.published needs null, all patches"),
    "ocp.masks": ({"ocp.model": "steve", "ocp.masks": "decoder"}, "'decoder' given, ocp.model steve needs attention"),
}


def refused(tmp_path, changes):
    """The one line that a stage would end with."""
    content = json.loads(json.dumps(yaml.safe_load((ROOT / "params.yaml").read_text())))  # its anchors undone
    for key, value in (STANDARD | changes).items():
        *sections, name = key.split(".")
        section = value_of(content, ".".join(sections)) if sections else content
        section[name] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.dump(content))
    with pytest.raises(UserError) as error:
        load("compute", path=path)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_gives_one_line(tmp_path, key):
    given, line = WRONG[key]
    found = refused(tmp_path, {key: given})
    assert found.startswith(f"{key}: {line}") and "\n" not in found


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_an_impossible_combination_gives_one_line(tmp_path, key):
    changes, line = IMPOSSIBLE[key]
    found = refused(tmp_path, changes)
    assert found.startswith(f"{key.removesuffix('.outside').removesuffix('.contrast')}: {line}") and "\n" not in found


@pytest.mark.parametrize(("key", "changes", "line"), [
    ("slot_select.manual.cheetah-run", {"slot_select.method": "manual"}, "None given, manual selection needs a list"),
    ("slot_select.manual.cheetah-run", {"slot_select.manual": {"cheetah-run": [1, 1]}}, "[1, 1] given, allowed are "),
    ("expert.training.cheetah-run", {"expert.train": True, "expert.training": {}}, "None given, training an expert"),
    ("ocp.slot_dim", {"slots.vectors": "components", "ocp.slot_dim": 4}, "4 given, slots.vectors components needs 8"),
    ("collect.segmented_episodes", {"collect.segmented_episodes": 0}, "0 given, collect.source: simulator needs"),
    ("ocp.clip_length", {"ocp.clip_length": 1001}, "1001 given, an episode has collect.steps = 1000"),
    ("finetune.budgets", {"finetune.budgets": [8, 2]}, "[8, 2] given, they must increase"),
    ("finetune.budgets", {"finetune.budgets": [2, 2]}, "[2, 2] given, they must increase"),
    *((f"{name}.warmup_epochs", {f"{name}.warmup_epochs": 999}, f"999.0 given, {name}.epochs is")
      for name in ("lapo", "lapo_slots", "laom")),
    *((f"{name}.batch_size", {"compute.devices": 2, "ocp.batch_size": 2, f"{name}.batch_size": 31},
       "31 given, compute.devices = 2 must divide it") for name in ("lapo", "lapo_slots"))])
def test_more_that_does_not_go_together_gives_one_line(tmp_path, key, changes, line):
    assert refused(tmp_path, changes).startswith(f"{key}: {line}")


@pytest.mark.parametrize("text", ["seeds: [2026-13-45]", "seeds: !!float abc", "[" * 3000, "a: 1\na: 2", "a: &b\n  *b",
                                  "seeds: !!python/object:os.system ls"])
def test_odd_yaml_gives_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text() + "\n" + text)
    with pytest.raises(UserError, match=f"^{path}: ") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("off", "off"), ("yes", "yes"), ("1e-5", 1e-5), ("0o10", 8),
                                             ("12:30", "12:30"), ("~", None), ("true", True)])
def test_scalars_are_yaml_1_2_as_dvc_reads_them(tmp_path, text, value):
    (tmp_path / "params.yaml").write_text(f"value: {text}\n")
    ours, dvcs = _parsed(f"value: {text}", "text"), parse_yaml(f"value: {text}", "text")
    assert ours == {"value": value} == dict(dvcs) and type(ours["value"]) is type(value)


def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path):
    text, rng, path = (ROOT / "params.yaml").read_text(), np.random.default_rng(0), tmp_path / "params.yaml"
    words = ["-1", "1e999", ".nan", "null", "[", "{", ":", "  ", "\t", "9" * 400, "'", "&a", "*a", "!!int", "\x85", "#"]
    refusals = 0
    for _ in range(40):
        place = rng.integers(len(text))
        path.write_text(text[:place] + rng.choice(words) + text[place + rng.integers(4):])
        try:
            read(path)
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 0 < refusals < 40


def test_a_missing_parameter_gives_one_line(tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    del content["lapo"]["latent_dim"]
    (tmp_path / "params.yaml").write_text(yaml.dump(content))
    with pytest.raises(UserError, match="params.yaml: lapo.latent_dim: missing$"):
        read(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["lapo: [", "- 1\n- 2\n", "", "\x00", "scale: !!int", "scale: !!bool x",
                                  "scale: 2001-99-99"])
def test_a_file_that_is_no_mapping_or_no_yaml_gives_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="params.yaml: ") as error:
        read(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_a_base_that_is_no_path_gives_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("base: 3\n")
    with pytest.raises(UserError, match="params.yaml: base: 3 given, should be the path of another parameter file"):
        read(tmp_path / "params.yaml")


def test_a_missing_file_gives_one_line():
    with pytest.raises(UserError, match="none.yaml: no such parameter file"):
        read("none.yaml")


def test_a_stage_receives_what_it_named_and_nothing_else():
    params = load("compute", "lapo.latent_dim", "lapo.frame_stack", path=ROOT / "params.yaml")
    assert set(vars(params)) == {"compute", "lapo"} and isinstance(params.lapo, SimpleNamespace)
    assert set(vars(params.lapo)) == {"latent_dim", "frame_stack"}


def test_changes_replace_values_and_are_checked_too():
    assert read(ROOT / "params.yaml", ["lapo.latent_dim=7", "seeds=[3, 4]"]).lapo.latent_dim == 7
    for change in ("lapo.latent=7", "lapo.latent_dim.x=7", "x.y=7", "lapo.latent_dim"):
        with pytest.raises(UserError):
            read(ROOT / "params.yaml", [change])
