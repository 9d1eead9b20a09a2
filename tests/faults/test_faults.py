"""A short round of faults; `make faults` is the long one."""

import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.parametrize("words", [["tests.faults", "--count", "12"], ["tests.faults.params", "--count", "25"]])
def test_faults_end_in_the_same_bytes_or_in_one_line_that_mends_them(pipeline, words):
    done = subprocess.run([sys.executable, "-m", *words, "--finished", pipeline], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
