"""Curves as TensorBoard reads them."""

import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oclam.curves import curves


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return tmp_path


def write(name, first, *steps):
    with curves(name, first) as show:
        for step in steps:
            show({"step": step, "loss": 1 / step, "probe_mse": 2.0})


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_scalar_is_a_curve_named_by_its_training():
    write("lapo-masks-cheetah-run-0", 0, 1, 2, 4)
    assert read("logs/workspace/lapo-masks-cheetah-run-0") == {
        "loss": [(1, 1.0), (2, 0.5), (4, 0.25)], "probe_mse": [(1, 2.0), (2, 2.0), (4, 2.0)]}


def test_a_resumed_training_has_every_step_once_and_a_new_one_only_its_own():
    write("bc", 0, 1, 2, 4)
    write("bc", 2, 4, 8)  # killed after 4, resumed from 2
    assert [step for step, _ in read("logs/workspace/bc")["loss"]] == [1, 2, 4, 8]
    write("bc", 0, 16)
    assert [step for step, _ in read("logs/workspace/bc")["loss"]] == [16]


def test_a_full_disk_ends_the_training_instead_of_a_thread_of_the_writer():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write("bc", 0, *range(1, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_experiments_stand_beside_each_other_in_the_logs_of_their_checkout(here, monkeypatch):
    copy = here / ".dvc/tmp/exps/abc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "wide-latent")
    write("bc", 0, 1)
    assert read(here / "logs/wide-latent/bc")["loss"] == [(1, 1.0)] and not Path("logs").exists()


def test_a_curve_is_there_while_its_training_runs():
    with curves("bc", 0) as show:
        for step in (1, 2):
            show({"step": step, "loss": 1 / step})
            assert read("logs/workspace/bc")["loss"][-1] == (step, 1 / step)
