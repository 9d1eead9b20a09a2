import os
import signal

import pytest

from oclam.machine import cores
from tests import ROOT

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are a CPU's on every machine


def pytest_xdist_auto_num_workers(config):
    """As many as this process may use cores."""
    return len(cores())


@pytest.fixture(autouse=True)
def default_sigterm():
    """SIGTERM ends a test's child processes, although a stage's main that ran in this process left its own handler."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The folder of a project in which every stage has run at a tiny scale; not to be changed."""
    from tests.stages.tiny import build  # here, because most tests need none of it

    folder = tmp_path_factory.mktemp("pipeline")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def graph():
    """DVC's graph of the stages: an edge points from a stage to one that it depends on."""
    from dvc.repo import Repo

    return Repo(ROOT).index.graph
