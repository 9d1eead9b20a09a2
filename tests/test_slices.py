"""What DVC would run, in slices: order, records, cores, failures and interruptions."""

import errno
import os
import subprocess
import sys
import time
from contextlib import chdir
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.repo import Repo

from oclam.artifacts import read_json, write_json
from oclam.cli import one_line_errors
from oclam.errors import UserError
from oclam.graph import read_stages
from oclam.machine import cores
from oclam.params import read
from oclam.slices import (
    PARALLEL,
    RECORDS,
    Job,
    _gpus,
    _limited,
    record,
    run_slice,
    time_left,
    trust_dvc_lock,
)
from tests import ROOT, runs, until

PIPELINE = {"stages": {  # `last` stands first, so that the file's order is not the graph's
    "last": {"cmd": "python count.py b all", "deps": ["count.py", "b"], "outs": ["all"]},
    "first": {"cmd": "python count.py params.yaml a", "params": ["eval.seed"], "deps": ["count.py"], "outs": ["a"]},
    "each": {"matrix": {"seed": "${seeds}"}, "cmd": "python count.py a b/${item.seed}", "deps": ["count.py", "a"],
             "outs": ["b/${item.seed}"]},
}}
COUNT = """import os, sys
from pathlib import Path
Path("ran").open("a").write(sys.argv[2] + " ")
path = Path(sys.argv[2])
path.parent.mkdir(exist_ok=True)
path.write_text("made")
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_params(seeds=[0, 1])
    Path("dvc.yaml").write_text(yaml.dump(PIPELINE, sort_keys=False))
    Path("count.py").write_text(COUNT)
    return tmp_path


def set_params(**changes):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.dump({**content, **changes}))


def ran():
    """What the stages made since the last call, in order; b/0 and b/1, which run side by side, by name."""
    made = Path("ran").read_text().split() if Path("ran").exists() else []
    Path("ran").unlink(missing_ok=True)
    return [path for _, beside in groupby(made, key=lambda path: path[0]) for path in sorted(beside)]


def test_stages_run_once_and_again_when_what_decides_them_changes(tree):
    assert run_slice(10) and ran() == ["a", "b/0", "b/1", "all"]
    assert run_slice(10) and ran() == []
    Path("b/1").unlink()
    assert run_slice(10) and ran() == ["b/1"]  # with the same content, so that `last` need not run
    set_params(seeds=[0, 1], eval={"episodes": 3, "backgrounds": "test", "seed": 5})
    assert run_slice(10) and ran() == ["a"]
    Path("a").write_text("maDe")  # damaged: no stage after it may read it
    assert run_slice(10) and ran() == ["a"] and Path("a").read_text() == "made"
    Path("count.py").write_text(COUNT + "# changed\n")
    assert run_slice(10, "first") and ran() == ["a"]


def test_a_damaged_record_means_that_the_stage_runs_again(tree, capfd):
    assert run_slice(10) and ran() == ["a", "b/0", "b/1", "all"]
    path = next(RECORDS.glob("first*.json"))
    path.write_text(path.read_text()[:-9])
    assert run_slice(10) and ran() == ["a"]
    assert f"{path}: damaged" in capfd.readouterr().err


def test_the_time_left_is_what_such_stages_took(tree):
    assert time_left(["each@0"], [], 1) == ""
    for name, seconds, made in (("each@0", 60, {}), ("each@1", 120, {}), ("first", 600, None), ("last", 30, {})):
        write_json(RECORDS / f"{name}.json", {"key": "k", "seconds": seconds, "made": made})
    assert time_left(["each@2", "each@3"], [("last", 10.0)], 2) == ", about 2 minutes are left"  # (90 + 90 + 20) / 2
    (RECORDS / "each@4.json").write_text("{damaged")
    assert time_left(["each@2", "first"], [], 1) == ", at least 2 minutes are left"  # first never ended
    assert time_left(["each@2"], [("first", 5.0)], 1) == ", at least 2 minutes are left"
    assert time_left([], [("last", 5.0)], 1) == ""  # less than half a minute


def test_a_stage_that_was_left_out_says_nothing_of_the_time_left(tree):
    Path("count.py").write_text("import sys\nfrom pathlib import Path\nfrom oclam.artifacts import write_absent\n"
                                "write_absent(Path(sys.argv[2]), 'extras.it is false')\n")
    assert run_slice(until="first")
    assert read_json(RECORDS / "first.json")["seconds"] == 0 and run_slice(0, until="first")
    Path("count.py").write_text("import time\ntime.sleep(600)")
    while not read_json(RECORDS / "first.json")["seconds"]:  # a busy machine may need more than one slice
        assert not run_slice(1 / 60, until="first")  # over what it left as absent before


def test_no_time_is_no_work(tree):
    assert not run_slice(0) and ran() == []


def test_a_failing_stage_is_named_and_runs_again(tree):
    Path("count.py").write_text("raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(UserError, match="first failed, and 3 of the stages need what they make"):
            run_slice(10)


SLOW = """import os, subprocess, sys, time
from pathlib import Path
if Path("go").exists():
    Path("spent").write_text(os.environ["OCLAM_SPENT"])
    Path(sys.argv[2]).write_text("made")
else:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("workers").write_text(f"{os.getpid()} {worker.pid}")
    time.sleep(600)
"""


def test_the_time_ends_a_stage_with_its_workers_and_is_counted(tree):
    Path("count.py").write_text(SLOW)
    params = read().model_dump()
    Job(read_stages(params)["first"], params).write(done=False, seconds=60.0)  # of slices before
    while not Path("workers").exists():  # a busy machine may need more than one to get so far
        assert not run_slice(0.05, "first")
    seconds = read_json(RECORDS / "first.json")["seconds"]
    ran = (RECORDS / "first.json").stat().st_mtime - Path("workers").stat().st_mtime
    assert seconds > 60 + ran - 1
    until(lambda: not any(map(runs, Path("workers").read_text().split())), seconds=10)
    Path("go").touch()
    assert run_slice(10, "first") and float(Path("spent").read_text()) == seconds


def test_stages_end_with_their_runner_and_a_second_runner_is_refused(tree):
    Path("count.py").write_text(SLOW)
    command = [sys.executable, "-m", "oclam.slices", "--minutes", "5", "--until", "first"]
    runner = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not Path("workers").exists() or not Path("workers").read_text():
        assert runner.poll() is None
        time.sleep(0.05)
    second = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert second.returncode == 1 and second.stderr.startswith("error: pipeline is already running in this folder")
    runner.kill()
    runner.wait()
    until(lambda: not runs(Path("workers").read_text().split()[0]), seconds=10)


def test_the_time_before_the_runner_was_killed_counts(tree, monkeypatch):
    Path("count.py").write_text(SLOW)
    end = Job.end
    with monkeypatch.context() as context:
        context.setattr("oclam.slices.STATUS_INTERVAL", 0.1)
        context.setattr(Job, "end", lambda job: end(job, recorded=False))  # as a runner killed at this moment
        params = read().model_dump()
        while not Job(read_stages(params)["first"], params).spent:
            assert not run_slice(0.03, "first")


BESIDE = """import os, sys, time
from pathlib import Path
path = Path(sys.argv[2])
path.parent.mkdir(exist_ok=True)
if path.parent.name == "b":
    Path(f"cores{path.name}").write_text(repr(sorted(os.sched_getaffinity(0))))
    while not Path(f"cores{1 - int(path.name)}").exists():  # ends only beside the other one
        time.sleep(0.01)
path.write_text("made")
"""


two_cores = pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")


@two_cores
def test_jobs_run_side_by_side_and_share_the_cores(tree):
    Path("count.py").write_text(BESIDE)
    ours = os.sched_getaffinity(0)
    assert run_slice(1) and Path("all").exists()
    first, second = (set(yaml.safe_load(Path(f"cores{k}").read_text())) for k in range(2))
    assert first | second == ours == os.sched_getaffinity(0) and (_limited() or not first & second)
    with pytest.raises(UserError, match="--jobs: 0 given"):
        run_slice(1, jobs=0)


def test_under_a_quota_of_cpu_time_stages_get_a_number_of_cores_instead_of_certain_ones(tree, monkeypatch):
    ours = os.sched_getaffinity(0)
    monkeypatch.setattr("oclam.slices.cores", lambda: sorted(ours)[:1])
    monkeypatch.setattr("oclam.slices._limited", lambda: True)
    Path("count.py").write_text(COUNT + "path.write_text(str((os.environ['OCLAM_CORES'], os.environ['OCLAM_JOBS'], "
                                        "os.sched_getaffinity(0))))\n")
    assert run_slice(10, "first") and Path("a").read_text() == str(("1", "1", ours))


@pytest.mark.parametrize("named, gpus", [("", []), ("-1", []), ("3,1", ["3", "1"]), ("0,-1,1", ["0"])])
def test_gpus_are_those_that_cuda_would_use(monkeypatch, named, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert _gpus() == gpus


@two_cores
def test_parameters_that_cannot_be_read_for_a_moment_stop_no_other_stage(tree, capfd):
    valid = Path("params.yaml").read_text()
    content = {"slow": {"cmd": "python slow.py x a", "deps": ["slow.py"], "outs": ["a"]},
               "later": {"cmd": "python count.py x b", "deps": ["count.py"], "outs": ["b"]}}
    Path("dvc.yaml").write_text(yaml.dump({"stages": content}, sort_keys=False))
    mend = ("import time\nwhile not Path('refused').exists(): time.sleep(0.01)\n"
            f"Path('params.yaml').write_text({valid!r})\n")
    Path("slow.py").write_text(COUNT + mend)
    start = Job.start

    def broken(job, *given, **environment):
        try:
            start(job, *given, **environment)
        except UserError:
            Path("refused").touch()
            raise
        Path("params.yaml").write_text("updates: \n")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="^later failed, and 0 of the stages"):
        patch.setattr(Job, "start", broken)
        run_slice(10, jobs=len(cores()))
    assert "later failed: params.yaml: " in capfd.readouterr().out and Path("a").exists() and not Path("b").exists()
    assert run_slice(10) and ran() == ["a", "b"]


def test_what_needs_no_failed_stage_is_done_all_the_same(tree, capfd):
    Path("count.py").write_text(COUNT + 'if path.name == "0": sys.exit("no room")\n')
    for expected in (["a", "b/0", "b/1"], ["b/0"]):
        with pytest.raises(UserError, match="each@0 failed, and 1 of the stages need what they make"):
            run_slice(10)
        assert ran() == expected
        assert "each@0 failed: status 1, see .resume/logs/each@0.log: no room\n" in capfd.readouterr().out
    assert Path("b/1").exists() and not Path("all").exists()


def test_a_missing_input_stops_only_what_needs_it(tree, capfd):
    content = {**PIPELINE["stages"], "lone": {"cmd": "python count.py missing c", "deps": ["missing"], "outs": ["c"]}}
    Path("dvc.yaml").write_text(yaml.dump({"stages": content}, sort_keys=False))
    with pytest.raises(UserError, match="^lone failed, and 0 of the stages need what they make"):
        run_slice(10)
    assert ran() == ["a", "b/0", "b/1", "all"] and "lone failed: missing: " in capfd.readouterr().out


@pytest.mark.parametrize("when", ["before", "while"])
def test_parameters_that_change_under_a_run_are_not_recorded_as_the_earlier_ones(tree, when, capfd):
    before = Path("params.yaml").read_text()
    set_params(seeds=[0, 1], eval={"episodes": 3, "backgrounds": "test", "seed": 5})
    after = Path("params.yaml").read_text()
    Path("params.yaml").write_text(before)
    change = f"Path('params.yaml').write_text({after!r})\n"
    if when == "before":  # while an earlier stage runs
        content = {"earlier": {"cmd": "python change.py x z", "deps": ["change.py"], "outs": ["z"]},
                   "first": {**PIPELINE["stages"]["first"], "deps": ["count.py", "z"]}}
        Path("dvc.yaml").write_text(yaml.dump({"stages": content}, sort_keys=False))
        Path("change.py").write_text(COUNT + change)
        assert run_slice(10, "first") and ran() == ["z", "a"]
    else:
        Path("count.py").write_text(COUNT + change)
        with pytest.raises(UserError, match="^first failed"):
            run_slice(10, "first")
        assert "first failed: parameters, code or inputs changed while it ran" in capfd.readouterr().out
        assert ran() == ["a"]
    Path("params.yaml").write_text(before)
    Path("count.py").write_text(COUNT)
    assert run_slice(10, "first") and ran() == ["a"]


def test_a_training_gets_a_core_for_each_of_its_threads(tree, monkeypatch):
    monkeypatch.setattr("oclam.slices.cores", lambda: [0, 1])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    set_params(compute={**read().model_dump()["compute"], "threads": 2})
    stage = {"cmd": "python count.py x a", "params": ["compute"], "deps": ["count.py"], "outs": ["a"]}
    other = {**stage, "cmd": "python count.py x b", "params": [], "outs": ["b"]}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {"train": stage, "other": other}}))
    given, start = {}, Job.start

    def note(job, cores, gpus, **environment):
        given[job.stage.name] = len(cores)
        start(job, cores, gpus, **environment)

    monkeypatch.setattr(Job, "start", note)
    assert run_slice(10) and given == {"train": 2, "other": 1}


def test_a_gpu_stage_gets_the_cores_of_the_gpus_share(tree, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    Path("count.py").write_text(COUNT + "path.write_text(f\"{os.sched_getaffinity(0)} \" + "
                                        "os.environ['CUDA_VISIBLE_DEVICES'])\n")
    stage = {"cmd": "python count.py x a", "params": ["compute"], "deps": ["count.py"], "outs": ["a"]}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {"train": stage}}))
    assert run_slice(10) and Path("a").read_text() == f"{os.sched_getaffinity(0)} 5"


def test_stages_that_take_several_gpus_are_those_whose_scripts_can_use_them():
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py") if "parallel=True" in path.read_text()}
    assert set(PARALLEL) == scripts
    with chdir(ROOT):
        stages = read_stages(read().model_dump())
    for stage in stages.values():
        if "compute" in stage.params:
            several = stage.script in scripts
            assert Job.devices(SimpleNamespace(stage=stage), 4) == (4 if several else 1)


def test_what_dvc_refuses_and_a_full_disk_are_one_line(tree, monkeypatch):
    with pytest.raises(UserError, match="^DVC: "):
        trust_dvc_lock()  # there is no repository
    Repo.init(no_scm=True).close()
    with Repo() as repo, repo.lock, pytest.raises(UserError, match="^DVC: Unable to acquire lock"):
        trust_dvc_lock()

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "file")

    with pytest.raises(SystemExit, match="^error: file: No space left on device; free some space"):
        one_line_errors(full)


def test_the_status_says_whether_to_call_again(tree):
    def call(*words):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-m", "oclam.slices", *words], env=environment, capture_output=True)

    assert call("--minutes", "0").returncode == 75
    assert call("--minutes", "10").returncode == 0
    failed = call("--minutes", "10", "--until", "none")
    assert failed.returncode == 1 and failed.stderr.startswith(b"error: --until: 'none' given")


def test_dvc_records_nothing_while_most_inputs_are_not_there_yet(tree):
    Repo.init(no_scm=True).close()
    record()
    assert not Path("dvc.lock").exists()


def test_dvc_records_what_is_done_and_what_it_has_recorded_is_not_run_again(tree):
    Repo.init(no_scm=True).close()
    Path("count.py").write_text(COUNT + 'if path.name == "0" and not Path("go").exists(): sys.exit("no room")\n')
    with pytest.raises(UserError):
        run_slice()
    assert ran() == ["a", "b/0", "b/1"]
    record()
    assert set(yaml.safe_load(Path("dvc.lock").read_text())["stages"]) == {"first", "each@1"}
    Path("go").touch()
    assert run_slice() and ran() == ["b/0", "all"]
    record()
    with Repo() as repo:
        assert repo.status() == {}
    for path in RECORDS.iterdir():
        path.unlink()
    Path("all").unlink()
    write_json(RECORDS / "first.json", {"key": "before", "seconds": 60.0, "made": {}})
    trust_dvc_lock()
    assert time_left(["first", "last"], [], 1) == ", at least 1 minutes are left"  # what DVC had took no time here
    assert run_slice() and ran() == ["all"]


@pytest.mark.parametrize("recorded", [False, True])
def test_dvc_s_record_stays_where_parameters_change_while_it_is_written(tree, monkeypatch, recorded):
    Repo.init(no_scm=True).close()
    assert run_slice()
    if recorded:
        record()
    lock, commit = Path("dvc.lock"), Repo.commit
    before = lock.read_bytes() if recorded else None

    def late(repo, *arguments, **options):
        set_params(seeds=[0, 1], eval={"episodes": 3, "backgrounds": "test", "seed": 5})
        return commit(repo, *arguments, **options)

    monkeypatch.setattr(Repo, "commit", late)
    with pytest.raises(UserError, match="^dvc.lock is as before: parameters, code or inputs changed while"):
        record()
    assert (lock.read_bytes() if lock.exists() else None) == before


def test_a_stage_runs_again_when_its_command_changes(tree):
    assert run_slice(10, "first") and ran() == ["a"]
    first = PIPELINE["stages"]["first"] | {"cmd": "python count.py dvc.yaml a"}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {"first": first}}))
    for expected in (["a"], []):
        assert run_slice(10) and ran() == expected


@two_cores
def test_stages_side_by_side_have_a_gpu_each(tree, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    Path("count.py").write_text(BESIDE.replace('"made"', 'os.environ["CUDA_VISIBLE_DEVICES"]'))
    each = PIPELINE["stages"]["each"] | {"params": ["compute"], "deps": ["count.py"]}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {"each": each}}))
    assert run_slice(1) and {Path(f"b/{k}").read_text() for k in range(2)} == {"5", "7"}


def test_seconds_of_an_interrupted_run_count_for_the_same_version_alone(tree):
    params = read().model_dump()
    stage = read_stages(params)["first"]
    Job(stage, params).write(done=False, seconds=60.0)
    assert Job(stage, params).spent == 60
    Path("count.py").write_text(COUNT + "# changed\n")
    assert Job(stage, params).spent == 0
