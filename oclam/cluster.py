"""The stages of dvc.yaml as Ray tasks, on this machine or on all nodes of a cluster.

`python -m oclam.cluster` skips what is done and resumes what is not, as `oclam.slices` does, whose records it shares.
`cluster.yaml` says what each stage needs; a change of it makes nothing stale. DVC is called on this host alone.
Nodes share this folder, or exchange code, parameters and data by a DVC remote (`--remote`).
"""

import argparse
import os
import signal
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from oclam.artifacts import digest
from oclam.cli import one_line_errors, only_one, run_name
from oclam.errors import UserError, one_line
from oclam.graph import Stage, needed_for, overlap, read_stages, start_order, upstream
from oclam.importers.adoption import refuse_foreign
from oclam.lease import PATIENCE, hold
from oclam.params import read
from oclam.paths import duration
from oclam.remote import Remote, Version
from oclam.slices import LOGS, STATUS_INTERVAL, Job, last_line, record, trust_dvc_lock

OOM_RETRIES = int(os.environ.setdefault("RAY_task_oom_retries", "3"))  # read by the import; otherwise without limit
try:
    import ray
except ModuleNotFoundError:
    sys.exit("error: Ray is not installed; run `make setup`, or pip install -e '.[cluster]'")

LEASES = Path(".resume/leases")
CODE = ("oclam", "stages", "dvc.yaml", "params.yaml")  # what every stage needs, on nodes that do not share the folder
LOG_END = 50_000  # characters of a log; Ray keeps larger results on the node, which may leave
RETRIES = 100  # of a task whose node died; each resumes from the stage's checkpoint


class Resources(BaseModel):
    """What Ray reserves for one run of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Annotated[float, Field(gt=0)]
    gpus: Annotated[float, Field(ge=0)]
    memory: Annotated[float, Field(gt=0)]  # GiB
    custom: dict[str, float] = {}  # of nodes that were started with --resources


def read_resources(scale: str, stages: list[str], path: Path = Path("cluster.yaml")) -> dict[str, Resources]:
    """The resources of each stage: those under the scale, or under `default`, by stage name, or its `default` entry.

    Raises UserError that names the entry for unknown stages and wrong values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        tables = TypeAdapter(dict[str, dict[str, Resources]]).validate_python(content)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `git checkout {path}` restores it") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({one_line(error)}); correct it, or run `git checkout {path}`"
                        ) from None
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{path}: {key}: {wrong['input']!r} given, {wrong['msg']}") from None
    table = tables.get(scale, tables.get("default", {}))
    if unknown := sorted(table.keys() - {"default", *stages}):
        raise UserError(f"{path}: {unknown[0]} is no stage; stages are {', '.join(stages)}")
    if "default" not in table:
        raise UserError(f"{path}: no entry `default` under {scale if scale in tables else 'default'}; add one")
    return {stage: table.get(stage, table["default"]) for stage in stages}


@ray.remote(max_retries=RETRIES)
def _run_stage(folder: str, name: str, patience: float) -> tuple[str, dict[str, Version], str]:
    """Run a stage in the shared folder. Returns why it failed or ""; no outputs and no log, which are in the folder."""
    os.chdir(folder)
    return _run(name, patience), {}, ""


@ray.remote(max_retries=RETRIES)
def _run_elsewhere(remote: Remote, inputs: dict[str, Version], name: str,
                   patience: float) -> tuple[str, dict[str, Version], str]:
    """Run a stage in the node's own folder. Returns why it failed or "", the pushed outputs, and the log's end."""
    _enter_own_folder()
    try:
        with hold(LEASES.with_name("pull"), wait=True, patience=patience):  # for two stages may need the same
            for path, version in inputs.items():
                remote.pull(path, version)
        failure, stage = _run(name, patience), read_stages(read().model_dump())[name]
        made = {} if failure else {out: remote.push(out) for out in [*stage.outs, *_duration(stage)]}
    except UserError as error:
        return str(error), {}, ""
    log = LOGS / f"{name}.log"
    return failure, made, log.read_text(errors="replace")[-LOG_END:] if log.exists() else ""


def _enter_own_folder() -> None:
    """Go to the node's folder for this code and these parameters, where `ray start --temp-dir` says.

    Not to Ray's own, from which the modules of this process come: before its first stage, every other node on the
    same host removes and unpacks it again.
    """
    shipped = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])  # named after its content
    own = shipped.parents[2] / "oclam" / shipped.name
    own.mkdir(parents=True, exist_ok=True)
    os.chdir(own)


def _duration(stage: Stage) -> list[str]:
    """The file in which a stage recorded how long it took, which it does not declare; nothing where there is none."""
    path = duration(run_name(stage.script, stage.words))
    return [str(path)] if path.exists() else []


def _inputs(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """The files and folders that the stage reads, without those that have absolute paths."""
    made = [out for other in upstream(stage, stages) for out in stages[other].outs]
    found = [[out for out in made if overlap(out, dep)] or [dep] for dep in stage.deps]
    found += map(_duration, stages.values()) if stage.name == "report" else []
    return [*filter(os.path.exists, CODE), *(path for paths in found for path in paths if not os.path.isabs(path)
                                             and not any(overlap(path, code) for code in CODE))]


class _Exchange:
    """Exchange of code and artifacts with nodes that do not share this folder, by a remote."""

    def __init__(self, remote, stages, params):
        self.remote, self.stages, self.params = remote, stages, params
        self.pushed, self.jobs = {}, {}

    def submit(self, name, options, patience):
        """Let Ray run the stage; raises UserError when its inputs cannot be sent."""
        stage = self.stages[name]
        if name.startswith("collect"):  # on a node the stage could not see such a dataset
            for out in stage.outs:
                refuse_foreign(Path(out), Path(self.params["collect"]["path"]))
        self.jobs[name] = Job(stage, self.params)  # before its inputs are pushed: an edit after this is noticed
        inputs = _inputs(stage, self.stages)
        for path in inputs:
            if path not in self.pushed or self.pushed[path].content != digest(path):
                self.pushed[path] = self.remote.push(path)
        return _run_elsewhere.options(**options).remote(
            self.remote, {path: self.pushed[path] for path in inputs}, name, patience)

    def receive(self, name, made, log):
        """Bring here what the stage made, nothing if it failed, and its log; raises UserError when that fails."""
        job = self.jobs[name]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(log)
        if made and not job.unchanged():
            raise UserError("parameters, code or inputs changed here while it ran; the same command runs it again")
        for path, version in made.items():
            self.remote.pull(path, version)
        self.pushed |= made
        if made:
            job.write(done=True)


def _run(name: str, patience: float) -> str:
    """Run a stage under its lease. Returns "", or why it failed."""
    params = read().model_dump()
    stage = read_stages(params)[name]
    gpus = ",".join(map(str, ray.get_gpu_ids()))
    while True:
        with hold(LEASES / name, wait=True, patience=patience) as held:
            job = Job(stage, params)
            if job.done:  # before, or by another node, which was only taken for dead
                return ""
            job.start(sorted(os.sched_getaffinity(0)), [], CUDA_VISIBLE_DEVICES=gpus, **_reserved())
            try:
                while job.process.poll() is None and held():
                    time.sleep(0.1)
            finally:  # also when the folder cannot be read
                if lost := job.process.poll() is None:
                    print(f"{name}: its lease was lost, so it stops here", flush=True)
                why = job.end(recorded=not lost)
        if not lost:
            return why


def _reserved():
    """What Ray reserved for this task, as environment variables: cores, and bytes of memory."""
    amounts = ray.get_runtime_context().get_assigned_resources()
    return {"OCLAM_CORES": str(max(int(amounts["CPU"]), 1)), "OCLAM_MEMORY": str(int(amounts["memory"]))}


def _amounts(asked: Resources) -> dict[str, float]:
    """What a stage takes, under Ray's names."""
    amounts = {"CPU": asked.cpus, "GPU": asked.gpus, "memory": asked.memory * 2**30, **asked.custom}
    return {key: amount for key, amount in amounts.items() if amount}


def _impossible(asked: Resources) -> bool:
    """Whether no node, not even an idle one, has so much."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return not any(all(node.get(key, 0) >= amount for key, amount in _amounts(asked).items()) for node in nodes)


def _wanted(asked: Resources, submitted: list[Resources], total: dict[str, float]) -> bool:
    """Whether to submit such a task to Ray, which starts tasks in the order of submission.

    No more are submitted than the nodes hold in total, but always one of each kind, so that Ray can ask for nodes.
    """
    amounts = [_amounts(other) for other in submitted]
    return asked not in submitted or all(sum(other.get(key, 0) for other in amounts) < total.get(key, 0)
                                      for key in _amounts(asked))


def run_graph(until: str | None = None, patience: float = PATIENCE, remote: Remote | None = None) -> None:
    """Run what is not done yet on the cluster that Ray is connected to.

    Args:
        until: as in `oclam.graph.needed_for`.
        patience: seconds after which a stage on a silent node may run on another.
        remote: by which nodes that do not share this folder get inputs and give outputs, all of which come here.
    Raises UserError that names the stages that failed, once all that does not need them is done.
    """
    params = read().model_dump()
    every = read_stages(params)
    stages = needed_for(until, every)
    resources = read_resources(params["scale"], list(dict.fromkeys(name.split("@")[0] for name in every)))
    needs = {name: upstream(stage, stages) for name, stage in stages.items()}
    asked_by = {name: resources[name.split("@")[0]] for name in stages}
    graph, rank = TopologicalSorter(needs), start_order(needs)
    graph.prepare()
    ready, tasks, ran, failed, done, next_status = [], {}, set(), [], 0, 0.0
    exchange = remote and _Exchange(remote, stages, params)

    def fail(name, why):
        failed.append(name)
        print(f"{name} failed: {why}", flush=True)

    while True:
        while found := graph.get_ready():
            for name in found:
                try:
                    # Not where its inputs have just changed.
                    finished = ran.isdisjoint(needs[name]) and Job(stages[name], params).done
                except UserError as error:  # of a dependency that is missing
                    fail(name, error)
                    continue
                if finished:
                    graph.done(name)
                    done += 1
                else:
                    ready.append(name)
        if not ready and not tasks:
            break
        total = ray.cluster_resources()
        for name in sorted(ready, key=rank.get):
            asked = asked_by[name]
            if _wanted(asked, [asked_by[other] for other in tasks.values()], total):
                options = {"name": name, "num_cpus": asked.cpus, "num_gpus": asked.gpus,
                           "memory": int(asked.memory * 2**30), "resources": asked.custom}
                ready.remove(name)
                try:
                    task = exchange.submit(name, options, patience) if exchange else \
                        _run_stage.options(**options).remote(os.getcwd(), name, patience)
                    tasks[task] = name
                except UserError as error:
                    fail(name, error)
        for task in ray.wait(list(tasks), timeout=1)[0] if tasks else []:
            name = tasks.pop(task)
            try:
                failure, made, log = ray.get(task)
                if exchange:
                    exchange.receive(name, made, log)
            except UserError as error:
                failure = str(error)
            except ray.exceptions.OutOfMemoryError:
                failure = f"its node ran out of memory {OOM_RETRIES + 1} times; raise its memory in cluster.yaml"
            except ray.exceptions.RayError as error:  # of a node that cannot run it, as without oclam
                failure = " ".join(str(error).split())[-300:]
            if failure:
                fail(name, failure)
            else:
                graph.done(name)
                ran.add(name)
                done += 1
        if time.monotonic() > next_status:
            next_status = time.monotonic() + STATUS_INTERVAL
            running = sorted(tasks.values()) if remote else [
                path.name for path in sorted(LEASES.glob("*")) if path.name in stages]
            lines = [f"  {name}: {last_line(name)}" for name in running]
            print("\n".join([f"{done} of {len(stages)} stages are done, {len(running)} run", *lines]), flush=True)
            if total.get("GPU") and not any(asked.gpus for asked in resources.values()):
                print(f"  no stage uses the cluster's GPUs: cluster.yaml has none for the scale {params['scale']}",
                      flush=True)
            left = dict.fromkeys(name.split("@")[0] for name in [*tasks.values(), *ready])
            if absent := [stage for stage in left if _impossible(resources[stage])]:
                print(f"  {', '.join(absent)}: no node has what cluster.yaml asks for; lower it there or add a node",
                      flush=True)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, and {len(stages) - done - len(failed)} of the stages need what "
                        "they make")


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a running cluster, or auto; without it, Ray starts on this machine")
    parser.add_argument("--until", metavar="STAGE", help="the last stage, or instance such as slots@cheetah-run-0")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="SECONDS",
                        help="without a sign of life, after which a stage's process is taken for dead (default "
                        f"{PATIENCE:.0f})")
    parser.add_argument("--remote", metavar="NAME", help="the DVC remote by which nodes exchange code and data, if "
                        "they do not share this folder")
    arguments = parser.parse_args()
    if not arguments.patience > 0:
        raise UserError(f"--patience: {arguments.patience:g} given, more than 0 is needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))
    remote = Remote.named(arguments.remote) if arguments.remote else None
    ours = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": ours}} if remote is None else {
        "working_dir": os.getcwd(), "excludes": [f"/{path}" for path in {*os.listdir(), ".resume"} - {*CODE}],
        "config": {"eager_install": False}}  # only on nodes that run stages
    with only_one("pipeline"), hold(LEASES.with_name("driver"), wait=False, patience=arguments.patience):
        trust_dvc_lock()
        try:
            ray.init(address=arguments.address or "local", include_dashboard=False, log_to_driver=False,
                     runtime_env=environment)
        except ConnectionError as error:
            raise UserError(f"--address: {one_line(error)}") from None
        try:
            run_graph(arguments.until, arguments.patience, remote)
        finally:
            ray.shutdown()
            record()


if __name__ == "__main__":
    one_line_errors(main)
