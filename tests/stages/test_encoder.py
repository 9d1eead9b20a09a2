"""Stage encoder takes files only from where DVC sees their changes."""

import pytest

from oclam.errors import UserError
from stages.encoder import watched


def test_files_outside_of_the_watched_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("hub", "data/encoders/own.safetensors"):
        assert watched(source, "a.b") == source
    for path in ("own.safetensors", "data/encoders/../own.safetensors"):
        with pytest.raises(UserError, match="^a.b: .*own.safetensors' given; put the file in data/encoders"):
            watched(path, "a.b")
