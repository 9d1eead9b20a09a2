import errno
import json
import sys

import pytest

from oclam.cli import arguments, run
from oclam.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/slot_select.py", "cheetah-run", "3"])


def test_arguments_are_typed_and_in_order():
    assert arguments("task", "seed") == ["cheetah-run", 3]


@pytest.mark.parametrize("error, line", [
    (UserError("lapo.frame_stack: 0 given"), "error: lapo.frame_stack: 0 given"),
    (OSError(errno.ENOSPC, "No space left", "data/x.zarr"), "error: the disk is full \\(data/x.zarr\\)"),
])
def test_what_the_user_can_mend_is_one_line(error, line):
    def main():
        raise error

    with pytest.raises(SystemExit, match=line):
        run(main)


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_duration_and_hardware_are_kept(tmp_path):
    run(lambda: None)
    record = json.loads((tmp_path / "reports/durations/slot-select-cheetah-run-3.json").read_text())
    assert record["stage"] == "slot-select-cheetah-run-3" and record["seconds"] >= 0 and record["hardware"]


def test_duration_counts_what_earlier_slices_spent(tmp_path, monkeypatch):
    monkeypatch.setenv("OCLAM_SPENT", "600.5")
    run(lambda: None)
    record = json.loads((tmp_path / "reports/durations/slot-select-cheetah-run-3.json").read_text())
    assert 600.5 <= record["seconds"] < 610
