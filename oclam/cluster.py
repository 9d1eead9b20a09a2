"""The stages of dvc.yaml as Ray tasks, on this machine or on all nodes of a cluster that share this folder.

`python -m oclam.cluster` skips what is done and resumes what is not, as `oclam.slices` does, whose records it shares.
`cluster.yaml` says what each stage needs; a change of it makes nothing stale. DVC is called on this host alone.
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

from oclam.cli import only_one
from oclam.errors import UserError
from oclam.lease import PATIENCE, hold
from oclam.params import read
from oclam.slices import Job, adopt, command, needed_for, read_stages, record, said, upstream, urgency

OOM_RETRIES = int(os.environ.setdefault("RAY_task_oom_retries", "3"))  # read by the import; otherwise without limit
try:
    import ray
except ModuleNotFoundError:
    sys.exit("error: Ray is not installed; pip install 'oclam[cluster]'")

__all__ = ["Resources", "read_resources", "run_graph"]

LEASES = Path(".resume/leases")
GLANCE = 30.0  # seconds between two views of what runs
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
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{path}: {key}: {wrong['input']!r} given, {wrong['msg']}") from None
    table = tables.get(scale, tables.get("default", {}))
    if unknown := sorted(table.keys() - {"default", *stages}):
        raise UserError(f"{path}: {unknown[0]} is no stage; stages are {', '.join(stages)}")
    if "default" not in table:
        raise UserError(f"{path}: no entry `default` under {scale if scale in tables else 'default'}")
    return {stage: table.get(stage, table["default"]) for stage in stages}


@ray.remote(max_retries=RETRIES)
def _run_stage(folder: str, name: str, patience: float) -> str:
    """"" when the stage is done, else what it said last."""
    os.chdir(folder)
    params = read().model_dump()
    stage = read_stages(params)[name]
    gpus = ",".join(map(str, ray.get_gpu_ids()))
    while True:
        with hold(LEASES / name, wait=True, patience=patience) as held:
            job = Job(stage, params)
            if job.done:  # before, or by another node, which was only taken for dead
                return ""
            job.start(sorted(os.sched_getaffinity(0)), [], CUDA_VISIBLE_DEVICES=gpus, OCLAM_CORES=str(_cores()))
            try:
                while job.process.poll() is None and held():
                    time.sleep(0.1)
            finally:  # also when the folder cannot be read
                if lost := job.process.poll() is None:
                    print(f"{name}: its lease was lost, so it stops here", flush=True)
                status = job.end(recorded=not lost)
        if not lost:
            return "" if status == 0 else f"status {status}, see {job.log}: {said(name)}"


def _cores():
    """The cores that this task may use."""
    return max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1)


def _amounts(asked: Resources) -> dict[str, float]:
    """What a stage takes, under Ray's names."""
    amounts = {"CPU": asked.cpus, "GPU": asked.gpus, "memory": asked.memory * 2**30, **asked.custom}
    return {key: amount for key, amount in amounts.items() if amount}


def _impossible(asked: Resources) -> bool:
    """Whether no node, not even an idle one, has so much."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return not any(all(node.get(key, 0) >= amount for key, amount in _amounts(asked).items()) for node in nodes)


def _wanted(asked: Resources, handed: list[Resources], total: dict[str, float]) -> bool:
    """Whether Ray may get another task, beside those that it has; it starts tasks in the order in which it gets them.

    So it gets no more than the nodes hold in total, and always one of each kind, for which it can ask for nodes.
    """
    amounts = [_amounts(other) for other in handed]
    return asked not in handed or all(sum(other.get(key, 0) for other in amounts) < total.get(key, 0)
                                      for key in _amounts(asked))


def run_graph(until: str | None = None, patience: float = PATIENCE) -> bool:
    """Run what is not done yet on the cluster that Ray is connected to; whether all is done.

    Args:
        until: as in `oclam.slices.needed_for`.
        patience: seconds after which a stage on a silent node may run on another.
    Raises UserError that names the stages that failed, once all that does not need them is done.
    """
    params = read().model_dump()
    every = read_stages(params)
    stages = needed_for(until, every)
    resources = read_resources(params["scale"], list(dict.fromkeys(name.split("@")[0] for name in every)))
    needs = {name: upstream(stage, stages) for name, stage in stages.items()}
    asked_by = {name: resources[name.split("@")[0]] for name in stages}
    graph, rank = TopologicalSorter(needs), urgency(needs)
    graph.prepare()
    ready, tasks, ran, failed, done, glance = [], {}, set(), [], 0, 0.0
    while True:
        while found := graph.get_ready():
            for name in found:
                if ran.isdisjoint(needs[name]) and Job(stages[name], params).done:  # else its inputs have just changed
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
                task = _run_stage.options(
                    name=name, num_cpus=asked.cpus, num_gpus=asked.gpus, memory=int(asked.memory * 2**30),
                    resources=asked.custom).remote(os.getcwd(), name, patience)
                tasks[task] = name
                ready.remove(name)
        for task in ray.wait(list(tasks), timeout=1)[0]:
            name = tasks.pop(task)
            try:
                failure = ray.get(task)
            except ray.exceptions.OutOfMemoryError:
                failure = f"its node ran out of memory {OOM_RETRIES + 1} times; raise its memory in cluster.yaml"
            except ray.exceptions.RayError as error:  # of a node that cannot run it, as without oclam
                failure = " ".join(str(error).split())[-300:]
            if failure:
                failed.append(name)
                print(f"{name} failed: {failure}", flush=True)
            else:
                graph.done(name)
                ran.add(name)
                done += 1
        if time.monotonic() > glance:
            glance = time.monotonic() + GLANCE
            running = [path.name for path in sorted(LEASES.glob("*")) if path.name in stages]
            lines = [f"  {name}: {said(name)}" for name in running]
            print("\n".join([f"{done} of {len(stages)} stages are done, {len(running)} run", *lines]), flush=True)
            left = dict.fromkeys(name.split("@")[0] for name in [*tasks.values(), *ready])
            if absent := [stage for stage in left if _impossible(resources[stage])]:
                print(f"  {', '.join(absent)}: no node has what cluster.yaml asks, so they wait", flush=True)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, and {len(stages) - done - len(failed)} of the stages need what "
                        "they make")
    return done == len(stages)


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a running cluster, or auto; without it, Ray starts on this machine")
    parser.add_argument("--until", metavar="STAGE", help="the last stage, or instance such as slots@cheetah-run-0")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="SECONDS",
                        help=f"of silence, after which a holder of a stage is taken for dead (default {PATIENCE:.0f})")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))
    ours = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    with only_one("slices"), hold(LEASES.with_name("driver"), wait=False, patience=arguments.patience):
        adopt()
        ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": ours}})
        try:
            run_graph(arguments.until, arguments.patience)
        finally:
            ray.shutdown()
            record()


if __name__ == "__main__":
    command(main)
