import os
import subprocess
import sys
from pathlib import Path

import pytest

from oclam.__main__ import COMMANDS


def oclam(*arguments, folder):
    """The ended process of `python -m oclam` in an empty folder, by this checkout's package."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, "-m", "oclam", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_as_its_module_does(name, tmp_path):
    ended = oclam(name, "--help", folder=tmp_path)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: "), ended.stderr


def test_an_unknown_command_is_refused(tmp_path):
    ended = oclam("fly", folder=tmp_path)
    assert ended.returncode == 2 and "invalid choice: 'fly'" in ended.stderr
