import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oclam import cli
from oclam.artifacts import atomic
from oclam.cli import arguments, run
from oclam.errors import UserError
from tests import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/slot_select.py", "cheetah-run", "3"])


def test_where_the_file_system_has_no_locks_a_lease_keeps_others_out(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(cli.fcntl, "flock", unsupported)
    with cli.only_one("collect"):
        lease, = Path().rglob("*.lease")
        assert str(os.getpid()) in lease.read_text()
    assert not lease.exists()


def test_parameters_are_those_at_the_stage_s_start(monkeypatch):
    run(lambda: Path("params.yaml").write_text("half an edi"))
    assert json.loads(next(Path("reports").rglob("*.json")).read_text())["scale"] == "small"


def test_arguments_are_typed_and_in_order():
    assert arguments("task", "seed") == ["cheetah-run", 3]
    for names in ((), ("task",)):  # the others are too many
        with pytest.raises(SystemExit, match="2"):
            arguments(*names)


@pytest.mark.parametrize("error, line", [
    (UserError("lapo.frame_stack: 0 given"), "error: lapo.frame_stack: 0 given"),
    (OSError(errno.ENOSPC, "No space left", "data/x.zarr"), "error: data/x.zarr: No space left; free some space"),
    (OSError(errno.EROFS, "Read-only file system", "data/x"), "error: data/x: Read-only file system; make it writable"),
])
def test_what_the_user_can_correct_is_one_line(error, line):
    def main():
        raise error

    with pytest.raises(SystemExit, match=line):
        run(main)


def test_a_file_that_cannot_grow_is_named_and_the_old_one_stays(tmp_path):
    script = ("import resource, sys\nfrom pathlib import Path\nfrom oclam.artifacts import write_json\n"
              "from oclam.cli import run\nsys.argv = ['lapo.py']\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))\n"
              "run(lambda: write_json(Path('data/table.json'), list(range(1000))))")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/table.json").write_text("old")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1
    assert ended.stderr == "error: data/table.json: File too large; raise `ulimit -f`, then `dvc repro` resumes\n"
    assert [path.read_text() for path in (tmp_path / "data").iterdir()] == ["old"]


@pytest.mark.parametrize("ask", ["numpy.ones(2**26)", "torch.ones(2**27)"])
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="memory is not limited beside a GPU")
def test_more_memory_than_there_is_ends_in_one_line(ask):
    script = ("import sys, numpy, torch\nfrom oclam import machine\nfrom oclam.cli import run\nsys.argv = ['lapo.py']\n"
              f"machine.total_memory = lambda: {2**20} * int(sys.stdin.read())\nrun(lambda: {ask})")
    out = ("error: out of memory; lower batch sizes or widths in params.yaml: `python -m oclam.plan` counts what each "
           "stage needs\n")
    for mebibytes, line in ((2000, ""), (500, out)):
        ended = subprocess.run([sys.executable, "-c", script], input=str(mebibytes), capture_output=True, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert (ended.stderr, ended.returncode) == (line, int(line != ""))


RACE = """
import signal, sys, time
from pathlib import Path
from oclam.artifacts import atomic
from oclam.cli import run
sys.argv = ["lapo.py", "cheetah-run", "0"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored

def main():
    with atomic("result") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        print("started", flush=True)
        time.sleep(3600)

run(main)
"""


@pytest.mark.parametrize(("number", "message"), [
    (signal.SIGTERM, "error: stopped by a signal; `dvc repro` resumes\n"),
    (signal.SIGINT, "error: interrupted; `dvc repro` resumes\n"), (signal.SIGKILL, "")])
def test_a_stage_runs_once_at_a_time_and_its_end_by_a_signal_leaves_nothing(tmp_path, number, message):
    def start():
        return subprocess.Popen([sys.executable, "-c", RACE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=os.environ | {"PYTHONPATH": str(ROOT)})

    first = start()
    assert first.stdout.readline() == "started\n"
    second = start()
    assert second.communicate(timeout=600)[1] == (
        "error: lapo-cheetah-run-0 is already running in this folder; wait for it, or stop it\n")
    assert second.returncode == 1
    first.send_signal(number)
    assert first.communicate(timeout=600)[1] == message
    assert first.returncode == (-number if number == signal.SIGKILL else 128 + number)
    left = list(tmp_path.glob(".result*.tmp"))
    assert len(left) == (number == signal.SIGKILL)
    with atomic("result") as temporary:  # clears what the killed process left
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"result", ".resume", "params.yaml"}


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


@pytest.mark.parametrize(("earlier", "seconds"), [(None, 12.3), ("600.5", 612.8)])
def test_duration_counts_earlier_slices_and_hardware_is_named(tmp_path, monkeypatch, earlier, seconds):
    if earlier:
        monkeypatch.setenv("OCLAM_SPENT", earlier)
    clock = iter([1000.0, 1012.34])
    monkeypatch.setattr(cli.time, "time", lambda: next(clock))
    monkeypatch.setattr(cli.os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(cli.platform, "machine", lambda: "abc64")
    monkeypatch.setattr(cli.sys, "modules", {**sys.modules, "torch": None})
    run(lambda: None)
    record = json.loads((tmp_path / "reports/durations/slot-select-cheetah-run-3.json").read_text())
    assert record == {"stage": "slot-select-cheetah-run-3", "scale": "small", "hardware": "3 abc64 cores",
                      "seconds": seconds}


def test_an_interruption_at_the_very_end_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(cli, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: None)
    assert ended.value.code == 130 and capsys.readouterr().err == "error: interrupted; `dvc repro` resumes\n"
    with pytest.raises(SystemExit, match="^error: interrupted; run the same command again$"):
        cli.one_line_errors(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
