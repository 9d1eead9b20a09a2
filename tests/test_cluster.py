"""The graph as Ray tasks on several nodes of this machine: order, records, failures, and nodes and drivers that die."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
import zarr

from oclam.errors import UserError
from tests import ROOT, runs, until

# Nodes talk by 127.0.0.1 alone, as Ray's do where firewalls ask for every other address.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A busy machine takes its time.
os.environ |= {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_register_timeout_seconds": "600",
               "RAY_worker_niceness": "0"}
ray = pytest.importorskip("ray", reason="needs the extra cluster")
from dvc.fs import LocalFileSystem  # noqa: E402
from dvc.repo import Repo  # noqa: E402

from oclam.cluster import (  # noqa: E402
    LEASES,
    Resources,
    _enter_own_folder,
    _Exchange,
    _impossible,
    _inputs,
    _wanted,
    main,
    read_resources,
    run_graph,
)
from oclam.graph import Stage, read_stages  # noqa: E402
from oclam.params import read  # noqa: E402
from oclam.remote import Remote  # noqa: E402
from oclam.slices import LOGS, Job  # noqa: E402

PIPELINE = {"stages": {
    "last": {"cmd": "python stage.py b all", "deps": ["stage.py", "b"], "outs": ["all"]},
    "first": {"cmd": "python stage.py params.yaml a", "params": ["eval.seed"], "deps": ["stage.py"], "outs": ["a"]},
    "each": {"matrix": {"seed": "${seeds}"}, "cmd": "python stage.py a b/${item.seed}", "deps": ["stage.py", "a"],
             "outs": ["b/${item.seed}"]},
}}
# Counts in a file, from which it resumes, and waits in the middle while there is a file `wait`; `ran` tells every start
# and end.
STAGE = """import os, sys, time
from pathlib import Path
source, target = map(Path, sys.argv[1:])
log, work, steps = Path("ran").open("a"), Path(f"work-{target.name}"), 20
print("start", target, os.getpid(), os.environ.get("OCLAM_MEMORY"), file=log, flush=True)
if Path("fail").exists() and target.name == "0":
    sys.exit("error: asked to fail")
while (done := len(work.read_text()) if work.exists() else 0) < steps:
    if done != 10 or not Path("wait").exists():
        work.open("a").write("x")
    time.sleep(0.01)
target.parent.mkdir(exist_ok=True)
target.write_text(f"{done} steps of {target}")
print("end", target, os.getpid(), file=log, flush=True)
"""
pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all
SMALL = {"cpus": 1, "gpus": 0, "memory": 0.05}


@pytest.fixture(scope="module")
def cluster():
    """A head without cores and with a pretended GPU, and a node with two cores."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES")
        found = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 0, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20})
    found.add_node(num_cpus=2, object_store_memory=80 << 20)
    ray.init(address=found.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.dump({**content, "seeds": [0, 1]}))
    Path("dvc.yaml").write_text(yaml.dump(PIPELINE, sort_keys=False))
    Path("stage.py").write_text(STAGE)
    Path("cluster.yaml").write_text(yaml.dump({"default": {"default": SMALL}}))


def ran(word, field=1):
    lines = [line.split() for line in Path("ran").read_text().splitlines()] if Path("ran").exists() else []
    return [line[field] for line in lines if line[0] == word]


def test_stages_run_in_the_order_of_the_graph_and_once(cluster, tree, capsys):
    run_graph()
    assert ran("end")[0] == "a" and set(ran("end")[1:3]) == {"b/0", "b/1"} and ran("end")[3:] == ["all"]
    assert Path("all").read_text() == "20 steps of all"
    told = capsys.readouterr().out
    assert "0 of 4 stages are done" in told and "no stage uses the cluster's GPUs: cluster.yaml has none for" in told
    Path("b/1").unlink()
    Path("cluster.yaml").write_text(yaml.dump({"default": {"default": SMALL | {"memory": 0.06}}}))  # nothing is stale
    Path("work-1").unlink()
    run_graph()
    assert ran("end")[4:] == ["b/1"]
    assert [int(size) / 2**30 for size in ran("start", 3)] == pytest.approx([0.05] * 4 + [0.06])
    assert not list(LEASES.iterdir())


def test_what_the_longest_chain_waits_for_starts_first(cluster, tree):
    def stage(source, target):
        return {"cmd": f"python stage.py {source} {target}", "deps": ["stage.py", source], "outs": [target]}

    pairs = {"short": "params.yaml x", "other": "params.yaml y", "last": "b c", "middle": "a b",
             "first": "params.yaml a"}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {name: stage(*pair.split()) for name, pair in pairs.items()}},
                                          sort_keys=False))
    Path("cluster.yaml").write_text(yaml.dump({"default": {"default": SMALL | {"custom": {"one": 1}}}}))
    single = cluster.add_node(num_cpus=1, resources={"one": 1}, object_store_memory=80 << 20)
    run_graph()
    assert ran("end") == ["a", "b", "x", "y", "c"]
    cluster.remove_node(single)


def test_ray_gets_what_the_nodes_hold_and_one_of_each_kind():
    total, half = {"CPU": 4, "GPU": 1, "memory": 2**34}, Resources(cpus=1, gpus=0.5, memory=1)
    assert _wanted(half, [], {}) and not _wanted(half, [half], {})  # one, by which a cluster learns to grow
    assert _wanted(half, [half], total) and not _wanted(half, 2 * [half], total)
    render = Resources(cpus=2, gpus=0, memory=1)
    assert _wanted(render, 2 * [half], total) and not _wanted(render, 2 * [half, render], total)


def test_a_failure_is_told_once_and_what_does_not_need_it_goes_on(cluster, tree, capsys):
    Path("fail").touch()
    with pytest.raises(UserError, match="^each@0 failed, and 1 of the stages need what they make$"):
        run_graph()
    assert sorted(ran("end")) == ["a", "b/1"]
    assert capsys.readouterr().out.count("error: asked to fail") == 1
    Path("fail").unlink()
    run_graph()
    assert sorted(ran("end")) == ["a", "all", "b/0", "b/1"]


@pytest.mark.parametrize("truly", [True, False])
def test_a_stage_on_a_node_that_dies_goes_on_from_its_checkpoint_on_one_that_joined_later(cluster, tree, truly):
    """Or ends where it is, if its node is dead for Ray alone: never is there a step twice, or a result by two."""
    Path("wait").touch()
    Path("cluster.yaml").write_text(yaml.dump({"default": {"default": SMALL | {"custom": {"here": 1}}}}))
    doomed, result = cluster.add_node(num_cpus=1, resources={"here": 1}, object_store_memory=80 << 20), []
    runner = threading.Thread(target=lambda: result.append(run_graph("first", patience=3)))
    runner.start()
    work = Path("work-a")
    until(lambda: work.exists() and len(work.read_text()) == 10)
    joined = cluster.add_node(num_cpus=1, resources={"here": 1}, object_store_memory=80 << 20)
    if truly:
        os.kill(int((LEASES / "first").read_text().split()[1]), signal.SIGKILL)
    cluster.remove_node(doomed, allow_graceful=False)
    Path("wait").unlink()
    runner.join(timeout=600)
    assert result == [None]  # it ended without an error
    assert not truly or len(ran("start")) > 1
    assert Path("a").read_text() == "20 steps of a" and work.read_text() == "x" * 20  # not one step twice
    cluster.remove_node(joined)


def test_the_driver_is_killed_and_started_again_and_dvc_knows_the_result(cluster, tree):
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    Path("wait").touch()
    command = [sys.executable, "-m", "oclam.cluster", "--address", cluster.address, "--patience", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    work = Path("work-a")
    with subprocess.Popen(command, env=environment, stdout=Path("out").open("w"), stderr=subprocess.STDOUT) as driver:
        until(lambda: work.exists() and len(work.read_text()) == 10 or driver.poll() is not None)
        assert driver.poll() is None, Path("out").read_text()
        refused = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: pipeline is already running in this folder")
        driver.send_signal(signal.SIGKILL)
    stage = int(Path("ran").read_text().split()[2])
    until(lambda: not runs(stage))
    Path("wait").unlink()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert ran("end")[-1] == "all" and Path("a").exists()
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True)
    assert "up to date" in status.stdout


def test_nodes_that_share_no_folder_exchange_data_by_a_dvc_remote(cluster, tree, tmp_path):
    dvc, environment = [sys.executable, "-m", "dvc"], os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "oclam.cluster", "--address", cluster.address, "--remote"]
    Path("stages").mkdir()
    Path("stages/__init__.py").touch()  # so that it goes before this repository's
    Path("stages/where.py").write_text("import pathlib; pathlib.Path('where').write_text(__file__)")
    where = {"cmd": "python -m stages.where", "deps": ["stages/where.py"], "outs": ["where"]}
    Path("dvc.yaml").write_text(yaml.dump({"stages": {**PIPELINE["stages"], "where": where}}, sort_keys=False))
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)
    subprocess.run([*dvc, "remote", "add", "-q", "store", tmp_path / "store"], check=True)
    unknown = subprocess.run([*command, "nowhere"], env=environment, capture_output=True, text=True)
    assert unknown.stderr == "error: --remote: 'nowhere' given, `dvc remote list` has store\n"
    Path("fail").touch()  # here, so that no stage sees it
    first = subprocess.run([*command, "store"], env=environment, stdout=subprocess.PIPE, text=True)
    assert first.returncode == 0, first.stdout
    assert not Path("ran").exists() and not Path("work-a").exists()  # it all ran in the node's folder
    assert "/oclam/_ray_pkg_" in Path("where").read_text()  # with the code there
    status = subprocess.run([*dvc, "status"], capture_output=True, text=True)
    assert "up to date" in status.stdout
    other = tmp_path / "other"  # what Git would carry, and the remote
    shutil.copytree(".", other, ignore=shutil.ignore_patterns("a", "b", "all", "where", "store", "other", ".resume",
                                                               "cache"))
    subprocess.run([*dvc, "pull", "-q", "-r", "store"], cwd=other, check=True)
    for path in ("a", "b/0", "b/1", "all"):
        assert (other / path).read_bytes() == Path(path).read_bytes()
    Path("b/1").unlink()
    again = subprocess.run([*command, "store"], env=environment, stdout=subprocess.PIPE, text=True)
    assert again.returncode == 0, again.stdout
    assert Path("b/1").read_bytes() == (other / "b/1").read_bytes()


def test_what_a_node_made_of_code_that_changed_meanwhile_is_not_taken(tree, tmp_path):
    remote, stages = Remote(LocalFileSystem, {}, str(tmp_path / "store")), read_stages(read().model_dump())
    exchange = _Exchange(remote, stages, read().model_dump())
    exchange.jobs["first"] = Job(stages["first"], exchange.params)
    Path("a").write_text("made")
    made = {"a": remote.push("a")}
    Path("a").unlink()
    code = Path("stage.py").read_text()
    Path("stage.py").write_text(code + "# changed\n")
    with pytest.raises(UserError, match="^parameters, code or inputs changed here while it ran"):
        exchange.receive("first", made, "its log")
    assert not Path("a").exists() and (LOGS / "first.log").read_text() == "its log"
    Path("stage.py").write_text(code)
    exchange.receive("first", made, "its log")
    assert Path("a").read_text() == "made" and Job(stages["first"], exchange.params).done


def test_every_task_of_a_node_works_in_one_folder_also_where_ray_removes_its_own(tmp_path, monkeypatch):
    (package := tmp_path / "session/runtime_resources/working_dir_files/package").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), "/other"]))
    monkeypatch.chdir(package)
    package.rmdir()  # as another node does that starts on this host
    for _ in range(2):
        _enter_own_folder()
        assert Path.cwd() == tmp_path / "session/oclam/package"


def test_a_node_pulls_code_and_parameters_before_data(tree):
    Path("oclam").mkdir()
    Path("a").touch()
    stages = read_stages(read().model_dump())
    assert _inputs(stages["each@0"], stages) == ["oclam", "dvc.yaml", "params.yaml", "stage.py", "a"]


def test_a_dataset_that_no_stage_wrote_is_not_replaced_by_a_node_s(tree):
    zarr.open_group("data/set.zarr", mode="w")
    stage = Stage("collect@a", "python -m stages.collect a distracted", [], [], ["data/set.zarr"])
    with pytest.raises(UserError, match="^data/set.zarr: no stage wrote this dataset"):
        _Exchange(None, {stage.name: stage}, read().model_dump()).submit(stage.name, {}, 1.0)


@pytest.mark.parametrize(("words", "address"), [([], "local"), (["--address", "auto"], "auto")])
def test_a_cluster_out_of_reach_is_one_line(tree, monkeypatch, words, address):
    def absent(**given):
        assert given["address"] == address
        raise ConnectionError("Could not find any running Ray instance.")

    Repo.init(no_scm=True).close()
    monkeypatch.setattr(sys, "argv", ["cluster", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(ray, "init", absent)
    with pytest.raises(UserError, match="^--address: Could not find any running Ray instance"):
        main()


def test_what_no_node_could_run_is_known(cluster):
    for larger, impossible in (({}, False), ({"cpus": 2}, False), ({"cpus": 3}, True), ({"gpus": 1}, True),
                               ({"memory": 1e6}, True), ({"custom": {"nowhere": 1}}, True)):
        assert _impossible(Resources(**SMALL | larger)) == impossible


def test_the_nodes_of_the_job_script_are_as_large_as_every_stage():
    script = (ROOT / "CONTRIBUTING.md").read_text().split("#SBATCH --job-name=oclam-node")[1].split("```")[0]
    gpus, cpus, memory = (float(re.search(rf"--{key}(\d+)", script)[1])
                          for key in ("gres=gpu:", "cpus-per-task=", "mem="))
    names = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for scale in ("small", "study", "paper"):
        for stage, asked in read_resources(scale, names, ROOT / "cluster.yaml").items():
            assert asked.cpus <= cpus and asked.gpus <= gpus and asked.memory < memory, (scale, stage)


def test_every_scale_s_resources_are_read_and_what_is_wrong_is_named(tmp_path):
    names = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for scale in ("small", "study-cpu", "study", "paper"):
        found = read_resources(scale, names, ROOT / "cluster.yaml")
        assert set(found) == set(names) and (found["lapo"].gpus > 0) == (scale in ("study", "paper"))
    for content, message in (("default: {default: {cpus: 0, gpus: 0, memory: 1}}", "default.default.cpus: 0 given"),
                             ("default: {lapo2: {cpus: 1, gpus: 0, memory: 1}}", "lapo2 is no stage; stages are"),
                             ("default: {lapo: {cpus: 1, gpus: 0, memory: 1}}", "no entry `default` under default"),
                             ("default: [", "not valid YAML")):
        (tmp_path / "cluster.yaml").write_text(content)
        with pytest.raises(UserError, match=message):
            read_resources("small", names, tmp_path / "cluster.yaml")
