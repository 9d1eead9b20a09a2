"""Stage encoder takes files only from where DVC sees their changes; what is shipped comes back by Git."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml

from oclam import artifacts
from oclam.errors import UserError
from oclam.params import read
from stages.encoder import watched
from tests import ROOT


def test_files_outside_of_the_watched_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("hub", "data/encoders/own.safetensors"):
        assert watched(source, "a.b") == source
    for path in ("own.safetensors", "data/encoders/../own.safetensors"):
        with pytest.raises(UserError, match="^a.b: .*own.safetensors' given; put the file in data/encoders"):
            watched(path, "a.b")


@pytest.mark.parametrize(("stage", "words"), [("encoder", []), ("expert", ["cheetah-run"])])
def test_what_the_repository_ships_comes_back_by_git(stage, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ("encoder.source=embedded", "expert.train=false", "collect.source=simulator")
    Path("params.yaml").write_text(yaml.safe_dump(read(ROOT / "params.yaml", changes).model_dump()))
    monkeypatch.setattr(artifacts, "kept", lambda path: f"`git checkout {path}` restores it")
    stage = importlib.import_module(f"stages.{stage}")
    monkeypatch.setattr(sys, "argv", [stage.__name__, *words])
    with pytest.raises(UserError, match="no such file; `git checkout data/.*` restores it"):
        stage.main()
