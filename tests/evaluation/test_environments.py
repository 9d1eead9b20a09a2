import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from oclam.evaluation.environments import Environments
from tests.evaluation.fakes import Noise

KILLED = """
import os, signal
from oclam.evaluation.environments import Environments
from tests.evaluation.fakes import Noise
with Environments([[Noise] * 2], workers=2):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_their_killed_parent():
    """They hold its standard output, which ends with the last of them."""
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, start_new_session=True)
    try:
        process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("opengl", [False, True])
def test_environments_live_in_as_many_processes_as_asked_which_inherit_no_opengl(monkeypatch, opengl):
    monkeypatch.delitem(sys.modules, "OpenGL", raising=False)
    if opengl:
        monkeypatch.setitem(sys.modules, "OpenGL", object())
    groups = [np.arange(4), np.arange(4, 6)]
    with Environments([[Noise] * len(group) for group in groups], workers=2) as environments:
        kinds = [type(process).__name__ for process in environments._processes]
        assert kinds == 2 * ["SpawnProcess" if opengl else "ForkProcess"]
        for group, members in enumerate(groups):
            environments.send(group, [10 + int(number) for number in members])
        for group, members in enumerate(groups):  # both were asked before either answered
            frames, rewards = environments.receive(group)
            assert np.array_equal(frames, [Noise().reset(seed=10 + int(number))[0] for number in members])
            assert not rewards.any()
    assert not any(process.is_alive() for process in environments._processes)
