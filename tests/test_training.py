import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from oclam import checkpoint as checkpoint_module
from oclam.checkpoint import Checkpoint
from oclam.errors import UserError
from oclam.seeding import torch_rng
from oclam.training import (
    _warn_of_emulation,
    autocast,
    best_device,
    count_parameters,
    exponential_decay,
    linear_decay,
    train,
    update,
)
from tests import ROOT, Killed


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(steps, kill_at=None, name="fit", interval=0.0, break_at=None):
    """A small regression with dropout, which draws on torch's global random state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(i):
        if i == kill_at:
            raise Killed
        x = torch.randn(8, 4, generator=torch_rng("batch", i))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        if i == break_at:
            loss = loss * float("nan")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    checkpoint = Checkpoint(name, {"steps": steps}, interval=interval)
    rows = train(step, steps, {"model": model, "optimizer": optimizer}, checkpoint, samples=8, rows=10)
    checkpoint.remove()
    return rows, model.state_dict()


def test_resumed_equals_uninterrupted_to_the_bit():
    rows, weights = run(30)
    with pytest.raises(Killed):
        run(30, kill_at=17)
    assert list(checkpoint_module.FOLDER.iterdir())
    resumed_rows, resumed = run(30)
    assert rows == resumed_rows and all(torch.equal(weights[key], resumed[key]) for key in weights)


def test_resume_loses_at_most_the_steps_since_the_last_save():
    with pytest.raises(Killed):
        run(30, kill_at=17)
    rows, _ = run(30, break_at=14)  # what was done before the save at 15 does not run again, so this breaks nothing
    assert len(rows) == 10


def test_nothing_is_left_after_success():
    run(5)
    assert not list(checkpoint_module.FOLDER.iterdir())


def test_other_parameters_do_not_resume():
    with pytest.raises(Killed):
        run(30, kill_at=17)
    first, _ = run(20)
    assert [row["step"] for row in first][0] == 2


def test_checkpoint_belongs_to_inputs(tmp_path):
    source = tmp_path / "input"
    source.write_text("one")
    before = Checkpoint("stage", {}, [source]).folder
    assert Checkpoint("stage", {}, [source]).folder == before
    source.write_text("two")
    assert Checkpoint("stage", {}, [source]).folder != before


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_state():
    with pytest.raises(UserError, match="loss is nan at step 14.*learning_rate"):
        run(30, break_at=13)
    state = next(checkpoint_module.FOLDER.rglob("state.pt"))
    assert checkpoint_module._read(state)["position"]["step"] == 12


def test_a_damaged_checkpoint_is_dropped_with_a_line_and_the_result_is_the_same(capsys):
    undisturbed = run(30)
    with pytest.raises(Killed):
        run(30, kill_at=17)
    path = next(checkpoint_module.FOLDER.rglob("state.pt"))
    content = path.read_bytes()
    for damaged in (content[:-20], content[:3], b"", content[:500] + bytes([content[500] ^ 1]) + content[501:]):
        path.write_bytes(damaged)
        with pytest.raises(Killed):
            run(30, kill_at=1)
        assert f"{path}: damaged" in capsys.readouterr().err
    rows, weights = run(30)
    assert rows == undisturbed[0] and all(torch.equal(weights[key], undisturbed[1][key]) for key in weights)


def test_units_count_from_zero_where_their_record_or_result_is_gone_or_damaged(tmp_path):
    result, record = tmp_path / "result", tmp_path / "units"
    units = checkpoint_module.Units(record, result)
    result.mkdir()
    units.finish()
    units.finish(torch.arange(3))
    again = checkpoint_module.Units(record, result)
    assert again.done == 2 and torch.equal(again.state, torch.arange(3))
    record.write_bytes(record.read_bytes()[:-1])
    assert checkpoint_module.Units(record, result).done == 0
    units.finish()
    assert not result.exists()
    assert checkpoint_module.Units(record, result).done == 0


def test_units_count_from_zero_where_a_finished_one_was_damaged(tmp_path, capsys):
    result, record = tmp_path / "result", tmp_path / "units"
    units = checkpoint_module.Units(record, result)
    result.mkdir()
    for unit in range(3):
        (result / f"{unit}").write_bytes(bytes([unit] * 9))
        if unit < 2:
            units.finish()
    (result / "2.0123.partial").touch()
    assert checkpoint_module.Units(record, result).done == 2  # the third was killed at work
    assert sorted(file.name for file in result.iterdir()) == ["0", "1", "2"]
    (result / "1").write_bytes(b"other")
    assert checkpoint_module.Units(record, result).done == 0
    assert capsys.readouterr().err == f"{result}/1: damaged, so this work starts again\n"
    assert not result.exists()  # whatever it was damaged to must not be opened again
    result.mkdir()
    for unit in range(2):
        (result / f"{unit}").write_bytes(bytes([unit] * 9))
    units.release(("1",))
    (result / "1").write_bytes(b"finished otherwise")
    assert checkpoint_module.Units(record, result).done == 2


def test_rows_are_means_over_their_window():
    values = torch.arange(6.0)
    rows = train(lambda i: {"loss": values[i]}, 6, {}, Checkpoint("mean", {}), samples=1, rows=3)
    assert rows == [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 2.5}, {"step": 6, "loss": 4.5}]


def test_linear_decay():
    rates = [linear_decay(step, 100, 9) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[100] == 0
    assert rates[55] == pytest.approx(45 / 91)
    assert [linear_decay(step, 4, 0) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_exponential_decay_halves_at_its_half_life():
    assert exponential_decay(0, 100, 9) == pytest.approx(0.1)
    assert exponential_decay(9, 100, 10) == pytest.approx(10 / 11)
    assert exponential_decay(100, 100, 10) == pytest.approx(0.5)
    assert exponential_decay(190, 100, 10) == pytest.approx(0.25)


def test_the_parameter_and_not_the_machine_decides_on_threads():
    script = "import stages, torch; from oclam.training import best_device; print(torch.get_num_threads()); "
    script += "best_device(3); print(torch.get_num_threads()); best_device(); print(torch.get_num_threads())"
    for threads in ("2", "7"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads})
        assert done.stdout.split() == ["1", "3", "3"]


def test_a_checkpoint_is_found_again_with_other_threads():
    with pytest.raises(Killed):
        run(30, kill_at=17)
    before = torch.get_num_threads()
    best_device(before + 1)
    try:
        run(30, break_at=14)  # resumed after it
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("norm", "scale"), [(2.0, 1 / 5), (float("inf"), 1 / 4)])
def test_an_update_has_a_rate_for_each_group_and_clips_by_the_norm(norm, scale):
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=0)
    update(optimizer, (3 * weights[0] - 4 * weights[1]).sum(), [1.0, 10.0], 1.0, norm)
    assert [weight.item() for weight in weights] == pytest.approx([-3 * scale, 40 * scale])


@pytest.mark.parametrize(("instructions", "warns"), [("AVX2", True), ("AVX512", False), ("AMX", False)])
def test_a_cpu_that_emulates_bfloat16_is_told_of_once(monkeypatch, capsys, instructions, warns):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: instructions)
    _warn_of_emulation.cache_clear()
    for precision in ("float32", "bfloat16", "bfloat16"):
        autocast(torch.device("cpu"), precision)
    told = capsys.readouterr().err
    assert told.count("warning") == warns and ("set compute.precision: float32" in told) == warns
    _warn_of_emulation.cache_clear()


def test_a_checkpoint_belongs_to_the_code_that_is_loaded(tmp_path, monkeypatch):
    assert Path(checkpoint_module.__file__) in checkpoint_module._loaded_code()
    module, folders = tmp_path / "module.py", set()
    monkeypatch.setattr(checkpoint_module, "_loaded_code", lambda: [module])
    for text in ("a = 1", "a = 2", "a = 1"):
        module.write_text(text)
        folders.add(Checkpoint("stage", {}).folder)
    assert len(folders) == 2


def test_a_finished_stage_removes_its_earlier_versions_and_no_other_stage_s():
    for name, version in (("lapo", 1), ("lapo", 2), ("lapo-masks", 1)):
        Checkpoint(name, version).save({})
    Checkpoint("lapo", 3).remove()
    assert list(checkpoint_module.FOLDER.iterdir()) == [Checkpoint("lapo-masks", 1).folder]


def test_saves_are_an_interval_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    checkpoint, due = Checkpoint("stage", {}, interval=60), []
    for now[0] in range(0, 200, 20):
        if checkpoint.due():
            checkpoint.save({})
            due.append(now[0])
    assert due == [60, 120, 180]


def test_frozen_parameters_are_counted_but_not_trainable():
    assert count_parameters(nn.Linear(3, 2), nn.Linear(5, 4).requires_grad_(False)) == {"total": 32, "trainable": 8}


def test_a_checkpoint_belongs_to_the_script_that_runs(tmp_path, monkeypatch):
    script, folders = tmp_path / "script.py", set()
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(script)))
    for text in ("a = 1", "a = 2", "a = 1"):
        script.write_text(text)
        folders.add(Checkpoint("stage", {}).folder)
    assert len(folders) == 2
