"""The pipeline without extra comparisons and background videos: what is left out, and what depends on it, is absent."""

import csv
import importlib
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from oclam import paths, suite
from oclam.act import play
from oclam.artifacts import is_absent, read_csv, read_json
from oclam.cli import run
from oclam.errors import Absent, UserError
from oclam.params import Extras
from oclam.variants import LATENT, VARIANTS
from tests import ROOT
from tests.stages.tiny import BUDGETS, TASK, build, expanded

pytestmark = pytest.mark.xdist_group("extras")  # one pipeline for all
LEFT_OUT = {"lapo-focus", "laom-labels"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras")
    build(folder, extras={"lapo_focus": False, "laom_labels": False, "steve": False, "slotcontrast": False},
          env={"background": False})
    with chdir(folder):
        yield folder


@pytest.mark.parametrize("extra", Extras.model_fields)
def test_a_stage_of_an_extra_asks_for_it_before_it_reads_data(extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    stage = importlib.import_module(f"stages.{extra}")
    monkeypatch.setattr(sys, "argv", [extra, TASK, "0", *([] if extra in ("steve", "slotcontrast") else ["laom"])])
    for value, error in ((False, f"extras.{extra} is false"), (True, "no such file")):
        content["extras"] = dict.fromkeys(Extras.model_fields, True) | {extra: value}
        Path("params.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=error) as raised:
            stage.main()
        assert isinstance(raised.value, Absent) != value


def test_what_is_left_out_and_all_that_follows_from_it_is_absent(project):
    absent = {name for name, stage in expanded().items() if all(map(is_absent, stage.outs))}
    expected = {f"{stage}@{TASK}-0" for stage in ("steve", "slotcontrast")}
    expected |= {f"{stage}@{TASK}-0-{name}" for name in LEFT_OUT for stage in (name, "bc", "finetune", "eval")}
    assert absent == expected
    durations = {path.stem for path in paths.duration("any").parent.glob("*.json")}
    assert f"bc-{TASK}-0-laom" in durations and not any(name in stem for stem in durations for name in LEFT_OUT)
    with pytest.raises(Absent, match="^extras.laom_labels is false$"):
        play(paths.policies(TASK, 0, "laom-labels"))


def test_without_background_videos_every_policy_acts_once(project):
    for variant, budgets in (("lapo", BUDGETS), ("bc", [0])):
        rows = read_csv(paths.evaluation(TASK, 0, variant))
        assert {row["backgrounds"] for row in rows} == {"test"}
        assert [row["budget"] for row in rows if row["episode"] == 0] == budgets


def test_policies_of_another_environment_s_actions_are_refused(project, monkeypatch):
    monkeypatch.setattr(suite, "sizes", lambda environment: (7, 17))
    monkeypatch.setattr(sys, "argv", ["eval", TASK, "0", "lapo"])
    with pytest.raises(UserError, match="policies with 6 actions, the suite's cheetah-run has 7; import"):
        importlib.import_module("stages.eval").main()


def test_a_stage_that_does_not_exist_is_named(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lapo_focus.py", TASK, "7", "lapo-focus"])
    with pytest.raises(SystemExit, match=f"^error: lapo-focus-{TASK}-7-lapo-focus: no stage of dvc.yaml and params"):
        run(importlib.import_module("stages.lapo_focus").main)


def test_the_report_has_the_others(project):
    tables = {name: list(csv.DictReader((paths.reports / f"{name}.csv").open())) for name in ("probes", "returns")}
    assert {row["variant"] for row in tables["probes"]} == set(LATENT) - LEFT_OUT
    assert {row["variant"] for row in tables["returns"] if int(row["budget"]) in BUDGETS} == {
        name for name, row in VARIANTS.items() if row.labels == "few"} - LEFT_OUT
    page = Path(paths.reports / "index.html").read_text()
    assert "laom-masks<" in page
    assert not any(name in page for name in ("STEVE", "SlotContrast", *(f"{name}<" for name in LEFT_OUT)))
    probe = read_json(paths.reports / "metrics.json")["probe"][TASK]
    assert set(probe) == set(LATENT) and {name for name in LATENT if probe[name] is None} == LEFT_OUT
